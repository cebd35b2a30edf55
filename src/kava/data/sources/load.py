"""Named data to examples: the built-in generator, a local file or directory, or a hub name.

    load_examples("builtin:mini/larger", "test", cot_type="equation")
    load_examples("/data/gsm8k", "train", cot_type="natural_language")
    train, validation = train_validation("whynlp/gsm8k-aug", cot_type="equation")
    load_benchmark("svamp", "/data/svamp.json")

What rows mean is found from their content (`formats`), which file of a directory is meant from content and name (`directory`).
"""

from dataclasses import replace

from kava.config import MiniDataConfig
from kava.data.answer_types import AnswerType
from kava.data.example import CotType
from kava.data.fingerprint import fingerprint
from kava.data.sources.benchmarks import BENCHMARKS
from kava.data.sources.directory import canonical_split
from kava.data.sources.resolve import open_benchmark, open_split
from kava.data.sources.splits import open_training
from kava.data.sources.usable_rows import BUILTIN, Loaded, OnBadRow, Rules, builtin_stream, stream


def load_examples(
    name: str,
    split: str,
    *,
    cot_type: CotType,
    on_bad_row: OnBadRow = "error",
    mini: MiniDataConfig | None = None,
    limit: int | None = None,
    answer_type: AnswerType = "number",
) -> Loaded:
    """Load one split.

    A file is the split whatever `split` says. Rows of a training split without a step of kind `cot_type` (95 of GSM8K's 7,473 have no
    annotation) are left out and counted in `skipped_no_trace`, unless the format is evaluation-only; other splits keep them, with no steps.

    Args:
        name: ``builtin:mini``, ``builtin:mini/<split>`` (the suffix wins over `split`), a local file or directory, or a hub name.
        split: train, validation (also valid, val, dev), test, or any other split the source has.
        limit: the first so many usable rows.

    Raises:
        UserError: nothing there, an unreadable row (with file and line), or rows that cannot give `cot_type` steps.
    """
    if name.startswith(BUILTIN):
        return builtin_stream(name, split, cot_type, mini, limit).load()
    need_trace = canonical_split(split) == "train"
    return stream(open_split(name, split, cot_type), split, Rules(cot_type, on_bad_row, limit, need_trace, answer_type=answer_type)).load()


def train_validation(
    name: str,
    *,
    cot_type: CotType,
    train_split: str = "train",
    validation_split: str = "validation",
    on_bad_row: OnBadRow = "error",
    mini: MiniDataConfig | None = None,
    limit: int | None = None,
    answer_type: AnswerType = "number",
) -> tuple[Loaded, Loaded]:
    """Load what `open_training` opens: training and validation examples that share no question.

    Raises:
        UserError: as `load_examples`, or fewer than 10 rows to hold a tenth out of.
    """
    splits = open_training(
        name, cot_type=cot_type, train_split=train_split, validation_split=validation_split, on_bad_row=on_bad_row, mini=mini, limit=limit,
        answer_type=answer_type,
    )  # fmt: skip
    train, validation = splits.read()
    return train.load(), validation


def load_benchmark(
    dataset: str,
    source: str,
    *,
    on_bad_row: OnBadRow = "error",
    mini: MiniDataConfig | None = None,
    limit: int | None = None,
    cot_type: CotType | None = None,
    answer_type: AnswerType = "number",
) -> Loaded:
    """Load an evaluation set: one of `BENCHMARKS`, or any other name as the test split of `source`, with answers of `answer_type`.

    In a directory the right file is found by content and name. Only question and answer matter here, unless `cot_type` asks for steps
    of one kind; `note` says which part of SVAMP was loaded, and which rows were left out.

    Raises:
        UserError: as `load_examples`.
    """
    benchmark = BENCHMARKS.get(dataset)
    rules = Rules(cot_type, on_bad_row, None, answer_type=benchmark.answer_type if benchmark else answer_type)
    if source.startswith(BUILTIN):
        return builtin_stream(source, "test", cot_type or "equation", mini, limit).load()
    if benchmark is None:
        return stream(open_split(source, "test", None), "test", replace(rules, limit=limit)).load()
    loaded = stream(open_benchmark(source, dataset), "test", rules).load()
    note = _svamp_note(len(loaded.examples) + loaded.bad_rows) if "svamp" in benchmark.formats else loaded.note
    return replace(_cut(loaded, limit), note=note)


def _cut(loaded: Loaded, limit: int | None) -> Loaded:
    if limit is None or limit >= len(loaded.examples):
        return loaded
    examples = loaded.examples[:limit]
    return replace(loaded, examples=examples, fingerprint=fingerprint(examples))


def _svamp_note(rows: int) -> str:
    parts = {1000: "all 1,000 problems of SVAMP", 300: "the test part of SVAMP, 300 problems"}
    return parts.get(rows, f"{rows:,} problems in SVAMP's form")
