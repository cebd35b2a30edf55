"""Load the questions of an evaluation from the built-in generator, a local file or directory, or the hub.

    load_benchmark("svamp", "/data/svamp.json")

The row format is recognised from the content (`formats`), the right file of a directory from content and name (`directory`).
"""

from dataclasses import replace
from itertools import islice

from kava.config import MiniDataConfig
from kava.data.answer_types import AnswerType
from kava.data.example import CotType
from kava.data.fingerprint import fingerprint
from kava.data.sources.benchmarks import BENCHMARKS, Benchmark
from kava.data.sources.directory import FIRST_ROWS, first_rows
from kava.data.sources.formats import recognise
from kava.data.sources.resolve import Opened, open_benchmark, open_split
from kava.data.sources.stream import BUILTIN, Loaded, OnBadRow, Rules, builtin_stream, stream
from kava.errors import UserError

# Row formats that only published data sets have, not the users' own files.
_OF_ONE_SET = frozenset({"gsm-plus", "math", "mgsm", "asdiv", "multiarith", "gsm8k", "gsm-hard", "svamp"})


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

    In a directory the right file is found by content and name. Only question and answer are needed, unless `cot_type` requests steps
    of one kind. The `note` of the result states which part of SVAMP was loaded, or which rows were left out.

    Raises:
        UserError: there is no such data, it is another evaluation set, or a row cannot be read (with file and line).
    """
    benchmark = BENCHMARKS.get(dataset)
    rules = Rules(cot_type, on_bad_row, None, answer_type=benchmark.answer_type if benchmark else answer_type)
    if source.startswith(BUILTIN):
        return builtin_stream(source, "test", cot_type or "equation", mini, limit).load()
    if benchmark is None:
        return stream(open_split(source, "test", None), "test", replace(rules, limit=limit)).load()
    opened = open_benchmark(source, dataset)
    _refuse_other_set(opened, dataset, benchmark)
    loaded = stream(opened, "test", rules).load()
    note = _svamp_note(len(loaded.examples) + loaded.bad_rows) if "svamp" in benchmark.formats else loaded.note
    return replace(_cut(loaded, limit), note=note)


def _refuse_other_set(opened: Opened, dataset: str, benchmark: Benchmark) -> None:
    """Refuse rows in the format of another evaluation set: a result must not be reported under the wrong name."""
    form = recognise(first_rows(list(islice(opened.rows(), FIRST_ROWS))))
    if form is not None and form.name in _OF_ONE_SET - set(benchmark.formats):
        raise UserError(
            f"{opened.source} holds rows of the layout {form.name}, not of '{dataset}'; name its own file, or call these rows otherwise"
        )


def _cut(loaded: Loaded, limit: int | None) -> Loaded:
    if limit is None or limit >= len(loaded.examples):
        return loaded
    examples = loaded.examples[:limit]
    return replace(loaded, examples=examples, fingerprint=fingerprint(examples))


def _svamp_note(rows: int) -> str:
    parts = {1000: "all 1,000 problems of SVAMP", 300: "the test part of SVAMP, 300 problems"}
    return parts.get(rows, f"{rows:,} problems in SVAMP's form")
