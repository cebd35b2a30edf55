"""Named evaluation sets: their row formats, their place on the hub, and their type of answers."""

import re
from dataclasses import dataclass

from kava.data.answer_types import AnswerType


@dataclass(frozen=True)
class Benchmark:
    """How an evaluation set is found.

    Attributes:
        formats: row formats (`kava.data.sources.formats`), in order of preference.
        splits: in order of preference; ``train+test`` joins two.
        hub: its name on the hub, with the configuration if there are several; None if it is published as a file elsewhere.
        answer_type: type of all its answers.
        by_name: its rows look like those of other sets, so a file in a directory must have the name of the set in its path.
    """

    formats: tuple[str, ...]
    splits: tuple[str, ...]
    hub: str | None
    answer_type: AnswerType = "number"
    by_name: bool = False

    def is_named(self, name: str, path: str) -> bool:
        """Return whether a path contains the name of the set, ignoring case and separators."""
        language = r"(?![a-z])" if name.startswith("mgsm-") else ""  # "te" must not match "test"
        return re.search(r"[^a-z0-9]*".join(re.sub(r"[^a-z0-9]", "", name)) + language, path.lower()) is not None


_WRITTEN = ("mawps", "multiarith", "adapters", "bare")

BENCHMARKS = {
    "gsm8k": Benchmark(("gsm8k", "steps", "icot", "codi"), ("test",), "openai/gsm8k"),
    # The hub calls its only GSM-Hard split "train".
    "gsm8k-hard": Benchmark(("gsm-hard",), ("test", "train"), "reasoning-machines/gsm-hard"),
    "svamp": Benchmark(("svamp",), ("test",), "ChilleD/SVAMP"),
    # All 1,000 problems, as CODI and others report them.
    "svamp-1000": Benchmark(("svamp",), ("train+test",), "ChilleD/SVAMP"),
    "multiarith": Benchmark(("multiarith", "mawps", "adapters"), ("test",), "ChilleD/MultiArith", by_name=True),
    "addsub": Benchmark(_WRITTEN, ("test",), None, by_name=True),
    "singleeq": Benchmark(_WRITTEN, ("test",), None, by_name=True),
    "asdiv": Benchmark(("asdiv",), ("test", "validation"), "EleutherAI/asdiv"),
    "gsm-plus": Benchmark(("gsm-plus",), ("test",), "qintongli/GSM-Plus"),
    "gsm-symbolic": Benchmark(("gsm8k",), ("test",), "apple/GSM-Symbolic:main", by_name=True),
    **{
        f"mgsm-{language}": Benchmark(("mgsm", "tabbed"), ("test",), f"juletxara/mgsm:{language}", by_name=True)
        for language in ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")
    },
    "math-500": Benchmark(("math",), ("test",), "HuggingFaceH4/MATH-500", by_name=True),
    "prosqa": Benchmark(("steps",), ("test",), None, "text", by_name=True),
    "prontoqa": Benchmark(("steps",), ("test",), None, "choice", by_name=True),
    # The test split on the hub has no answers.
    "commonsenseqa": Benchmark(("choices", "codi"), ("validation", "test"), "tau/commonsense_qa", "choice", by_name=True),
    "strategyqa": Benchmark(("bare", "codi"), ("test",), "ChilleD/StrategyQA", "choice", by_name=True),
}
