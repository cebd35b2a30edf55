"""Named data to examples: the built-in generator, a local file or directory, or a hub name.

    load_examples("builtin:mini/larger", "test", cot_type="equation")
    load_examples("/data/gsm8k", "train", cot_type="natural_language")
    train, validation = train_validation("whynlp/gsm8k-aug", cot_type="equation")
    load_benchmark("svamp", "/data/svamp.json")

What rows mean is found from their content (`formats`), which file of a directory is meant from content and name (`directory`).
"""

from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Literal

from kava.config import MiniDataConfig
from kava.data.directory import BENCHMARKS, FIRST_ROWS, NoSuchSplitError, canonical_split, first_rows
from kava.data.example import CotType, Example, is_text
from kava.data.fingerprint import fingerprint
from kava.data.formats import FORMATS, Format, RowError, recognise
from kava.data.mini import SPLITS, generate
from kava.data.opening import Opened, open_benchmark, open_split
from kava.data.readers import BadRow, Placed
from kava.errors import UserError, nearest

HELD_OUT_ROWS = 500
_BUILTIN = "builtin:"
OnBadRow = Literal["error", "skip"]


@dataclass(frozen=True)
class Loaded:
    """Examples and where they come from.

    Attributes:
        examples: in the order of the source.
        source: resolved path, hub name with split, or ``builtin:mini/<split>``.
        fingerprint: content hash of `examples` (`kava.data.fingerprint`).
        bad_rows: rows left out because they could not be read (`on_bad_row="skip"`).
        skipped_no_trace: readable training rows left out because they have no step of the wanted kind.
        note: what a reader of a result must know, e.g. which part of SVAMP this is.
    """

    examples: list[Example]
    source: str
    fingerprint: str
    bad_rows: int = 0
    skipped_no_trace: int = 0
    note: str = ""


@dataclass(frozen=True)
class _Rules:
    """How rows become examples. `cot_type` None takes whatever trace there is (an evaluation does not use it)."""

    cot_type: CotType | None
    on_bad_row: OnBadRow
    limit: int | None
    need_trace: bool = False
    exclude: frozenset[str] = frozenset()


def load_examples(
    name: str,
    split: str,
    *,
    cot_type: CotType,
    on_bad_row: OnBadRow = "error",
    mini: MiniDataConfig | None = None,
    limit: int | None = None,
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
    if name.startswith(_BUILTIN):
        return _load_builtin(name, split, cot_type, mini, limit)
    need_trace = canonical_split(split) == "train"
    return _read(open_split(name, split, cot_type), split, _Rules(cot_type, on_bad_row, limit, need_trace))


def train_validation(
    name: str,
    *,
    cot_type: CotType,
    train_split: str = "train",
    validation_split: str = "validation",
    on_bad_row: OnBadRow = "error",
    mini: MiniDataConfig | None = None,
    limit: int | None = None,
) -> tuple[Loaded, Loaded]:
    """Load training and validation examples that share no question.

    Where the source has no validation split of the wanted kind (a single file, `openai/gsm8k`, a directory whose validation file holds
    equations when sentences are asked for), the last 500 rows of train (at most a tenth) are held out. Where it has one, training
    rows that ask one of its questions are left out and counted in `note`: all 500 GSM8k-AUG validation questions are GSM8K training
    questions. `limit` applies to the training examples.

    Raises:
        UserError: as `load_examples`, or fewer than 10 rows to hold a tenth out of.
    """
    if name.startswith(_BUILTIN):
        if "/" in name:
            raise UserError(f"'{name}' names one split, but training needs two; use '{name.partition('/')[0]}'")
        first, second = (_load_builtin(name, split, cot_type, mini, n) for split, n in ((train_split, limit), (validation_split, None)))
        return first, second
    rules = _Rules(cot_type, on_bad_row, limit, need_trace=True)
    try:
        validation_rows = open_split(name, validation_split, cot_type, apart_from_train=True)
    except NoSuchSplitError:
        everything = _read(open_split(name, train_split, cot_type), train_split, replace(rules, limit=None))
        return _hold_out(everything, limit)
    validation = _read(validation_rows, validation_split, _Rules(cot_type, on_bad_row, None))
    exclude = frozenset(_question_key(example.question) for example in validation.examples)
    return _read(open_split(name, train_split, cot_type), train_split, replace(rules, exclude=exclude)), validation


def load_benchmark(
    dataset: str,
    source: str,
    *,
    on_bad_row: OnBadRow = "error",
    mini: MiniDataConfig | None = None,
    limit: int | None = None,
    cot_type: CotType | None = None,
) -> Loaded:
    """Load an evaluation set: gsm8k, gsm8k-hard, svamp, or any other name as the test split of `source`.

    In a directory the right file is found by content and name. Only question and answer matter here, unless `cot_type` asks for steps
    of one kind; `note` says which part of SVAMP was loaded.

    Raises:
        UserError: as `load_examples`.
    """
    rules = _Rules(cot_type, on_bad_row, None)
    if source.startswith(_BUILTIN):
        return _load_builtin(source, "test", cot_type or "equation", mini, limit)
    if dataset not in BENCHMARKS:
        return _read(open_split(source, "test", None), "test", replace(rules, limit=limit))
    loaded = _read(open_benchmark(source, dataset), "test", rules)
    note = _svamp_note(len(loaded.examples) + loaded.bad_rows) if dataset == "svamp" else ""
    return replace(_cut(loaded, limit), note=note)


def _load_builtin(name: str, split: str, cot_type: CotType, config: MiniDataConfig | None, limit: int | None) -> Loaded:
    generator, _, suffix = name.removeprefix(_BUILTIN).partition("/")
    if generator != "mini":
        raise UserError(f"there is no built-in data set '{name}'; the only one is 'builtin:mini'")
    split = canonical_split(suffix or split)
    if split not in SPLITS:
        raise UserError(f"builtin:mini has no split '{split}'{nearest(split, SPLITS)}")
    examples = generate(split, config or MiniDataConfig(), cot_type, limit)
    return Loaded(examples, f"builtin:mini/{split}", fingerprint(examples))


def _read(opened: Opened, split: str, rules: _Rules) -> Loaded:
    """Turn rows into examples under the rules, stopping at the limit."""
    rows = iter(opened.rows)
    first = list(islice(rows, FIRST_ROWS))
    form = _format_of(first, opened, rules.cot_type)
    drop_untraced = rules.need_trace and bool(form.trace_forms(first_rows(first)))
    examples: list[Example] = []
    bad = untraced = excluded = 0
    for number, (place, row) in enumerate(chain(first, rows), 1):
        if rules.limit is not None and len(examples) >= rules.limit:
            break
        try:
            question, steps, answer = _parse(row, form, rules.cot_type)
        except RowError as error:
            if rules.on_bad_row == "error":
                raise UserError(f"{opened.label} {place}: {error}; mend the row, or set dataset.on_bad_row to skip") from None
            bad += 1
            continue
        if drop_untraced and not steps:
            untraced += 1
        elif _question_key(question) in rules.exclude:
            excluded += 1
        else:
            examples.append(Example(question, steps, answer, f"{opened.stem}/{split}/{number}"))
    if not examples:
        counts = f"{bad} unreadable, {untraced} without steps, {excluded} in validation"
        raise UserError(f"{opened.source} has no usable row for split '{split}' ({counts}); check the file, or name another one")
    note = f"{excluded} rows left out that ask a validation question" if excluded else ""
    return Loaded(examples, opened.source, fingerprint(examples), bad, untraced, note)


def _format_of(first: list[Placed], opened: Opened, cot_type: CotType | None) -> Format:
    rows = first_rows(first)
    form = recognise(rows)
    if form is None:
        found = f"the first row has {', '.join(rows[0]) or 'no fields'}" if rows else "there is no readable row"
        known = "; ".join(f"{known.name}: {known.description}" for known in FORMATS.values())
        raise UserError(f"{opened.source} is of no known format: {found}, known are {known}")
    forms = form.trace_forms([row for row in rows if form.matches(row)])
    if cot_type is not None and forms and cot_type not in forms:
        has = ", ".join(sorted(forms))
        raise UserError(
            f"{opened.source} has {has} steps, but dataset.cot_type is {cot_type}; set it to {has}, or dataset.name to another set"
        )
    return form


def _parse(row: object, form: Format, cot_type: CotType | None) -> tuple[str, tuple[str, ...], str]:
    if isinstance(row, BadRow):
        raise RowError(row.reason)
    assert isinstance(row, dict)
    question, steps, answer = form.parse(row, cot_type or "equation")
    if not all(map(is_text, (question, *steps))):
        raise RowError("half of a character, such as \\ud800 alone, is no text")
    return question, steps, answer


def _question_key(question: str) -> str:
    return " ".join(question.split())


def _hold_out(everything: Loaded, limit: int | None) -> tuple[Loaded, Loaded]:
    examples = everything.examples
    count = min(HELD_OUT_ROWS, len(examples) // 10)
    if count == 0:
        raise UserError(f"{everything.source} has {len(examples)} usable rows, too few to hold out a tenth; give at least 10")
    validation = examples[-count:]
    asked = {_question_key(example.question) for example in validation}
    train = [example for example in examples[:-count] if _question_key(example.question) not in asked]
    repeated = len(examples) - count - len(train)
    note = f"the last {count} rows are held out for validation" + (f", {repeated} rows left out that repeat them" if repeated else "")
    held_out = Loaded(validation, f"{everything.source} (last {count} rows)", fingerprint(validation), note=note)
    return _cut(replace(everything, examples=train, fingerprint=fingerprint(train), note=note), limit), held_out


def _cut(loaded: Loaded, limit: int | None) -> Loaded:
    if limit is None or limit >= len(loaded.examples):
        return loaded
    examples = loaded.examples[:limit]
    return replace(loaded, examples=examples, fingerprint=fingerprint(examples))


def _svamp_note(rows: int) -> str:
    parts = {1000: "all 1,000 problems of SVAMP", 300: "the test part of SVAMP, 300 problems"}
    return parts.get(rows, f"{rows:,} problems in SVAMP's form")
