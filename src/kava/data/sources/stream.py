"""Convert rows to the examples of a split, one at a time; unusable rows are left out and counted."""

import reprlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Literal

from kava.config import MiniDataConfig
from kava.data.answer_types import ANSWER_TYPES, AnswerType, canonical_answer
from kava.data.example import CotType, Example, is_text
from kava.data.fingerprint import Fingerprint
from kava.data.mini.problems import SPLITS, problems
from kava.data.sources.directory import FIRST_ROWS, canonical_split, first_rows
from kava.data.sources.formats import FORMATS, AnswerError, Format, RowError, recognise
from kava.data.sources.readers import BadRow, LocatedRow
from kava.data.sources.resolve import Opened
from kava.errors import UserError, nearest

BUILTIN = "builtin:"
_NOT: dict[AnswerType, str] = {"number": "is not a number", "choice": "is no letter, yes or no", "text": "is no text"}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
OnBadRow = Literal["error", "skip"]


@dataclass(frozen=True)
class Loaded:
    """Examples and where they come from.

    Attributes:
        examples: in the order of the source.
        source: resolved path, hub name with split, or ``builtin:mini/<split>``.
        fingerprint: content hash of `examples` (`kava.data.fingerprint`).
        bad_rows: rows left out because they could not be read (`on_bad_row="skip"`).
        skipped_no_trace: readable training rows left out because they have no step of the requested kind.
        note: what a reader of a result must know, e.g. which part of SVAMP this is.
    """

    examples: list[Example]
    source: str
    fingerprint: str
    bad_rows: int = 0
    skipped_no_trace: int = 0
    note: str = ""


@dataclass(frozen=True)
class Rules:
    """How rows are converted to examples. `cot_type` None accepts any trace (an evaluation does not use it)."""

    cot_type: CotType | None
    on_bad_row: OnBadRow
    limit: int | None
    need_trace: bool = False
    exclude: frozenset[str] = frozenset()
    answer_type: AnswerType = "number"


@dataclass
class Tally:
    """Number of rows left out: unreadable; answer is not a number, in a data set that has such answers too (`Format.partial`);
    no step of the requested kind; question of the validation set."""

    bad: int = 0
    unanswerable: int = 0
    untraced: int = 0
    excluded: int = 0


class Stream:
    """Examples of one split; every loop over it reads the source again, and the examples are never all in memory.

    Args:
        source: as in `Loaded`.
        make: returns an iterator over the examples, which counts the rows left out in the given `Tally`.
        note: returns the text for `Loaded.note` about the rows left out.
    """

    def __init__(self, source: str, make: Callable[[Tally], Iterator[Example]], note: Callable[[Tally], str] = lambda tally: "") -> None:
        self.source = source
        self._make = make
        self._note = note
        self.tally = Tally()
        self.fingerprint = ""

    def __iter__(self) -> Iterator[Example]:
        """Yield the examples; afterwards `tally` and `fingerprint` describe this pass."""
        tally, found = Tally(), Fingerprint()
        for example in self._make(tally):
            found.add(example)
            yield example
        self.tally, self.fingerprint = tally, str(found)

    @property
    def note(self) -> str:
        """Text about the rows left out."""
        return self._note(self.tally)

    def load(self) -> Loaded:
        """Read all examples into memory."""
        examples = list(self)
        return Loaded(examples, self.source, self.fingerprint, self.tally.bad, self.tally.untraced, self.note)


def builtin_stream(name: str, split: str, cot_type: CotType, config: MiniDataConfig | None, limit: int | None) -> Stream:
    """Return a split of the generator; a suffix of the name has priority over `split`.

    Raises:
        UserError: no such generator or split.
    """
    generator, _, suffix = name.removeprefix(BUILTIN).partition("/")
    if generator != "mini":
        raise UserError(f"there is no built-in data set '{name}'; the only one is 'builtin:mini'")
    split = canonical_split(suffix or split)
    if split not in SPLITS:
        raise UserError(f"builtin:mini has no split '{split}'{nearest(split, SPLITS)}")
    return Stream(f"builtin:mini/{split}", lambda tally: problems(split, config or MiniDataConfig(), cot_type, limit))


def stream(opened: Opened, split: str, rules: Rules) -> Stream:
    """Return the usable rows of an opened split, up to the limit of the rules."""

    def note(tally: Tally) -> str:
        left_out = {"ask a validation question": tally.excluded, "are answered by no number": tally.unanswerable}
        return "; ".join(f"{count} rows left out that {why}" for why, count in left_out.items() if count)

    return Stream(opened.source, lambda tally: _usable(opened, split, rules, tally), note)


def question_key(question: str) -> str:
    """Return a key that is equal for questions that differ only in white space."""
    return " ".join(question.split())


def _usable(opened: Opened, split: str, rules: Rules, tally: Tally) -> Iterator[Example]:
    rows = opened.rows()
    first = list(islice(rows, FIRST_ROWS))
    form = _format_of(first, opened, rules.cot_type)
    drop_untraced = rules.need_trace and bool(form.trace_forms(first_rows(first)))
    if rules.on_bad_row == "error":
        _refuse_unknown_layout(first, form, opened, rules)
    count = 0
    for number, (place, row) in enumerate(chain(first, rows), 1):
        if rules.limit is not None and count >= rules.limit:
            break
        try:
            question, steps, answer = _parse(row, form, rules)
        except RowError as error:
            if form.partial and rules.answer_type == "number" and isinstance(error, AnswerError):
                tally.unanswerable += 1
                continue
            if rules.on_bad_row == "error":
                raise UserError(f"{opened.label} {place}: {error}; fix the row, or set dataset.on_bad_row to skip") from None
            tally.bad += 1
            continue
        if drop_untraced and not steps:
            tally.untraced += 1
        elif question_key(question) in rules.exclude:
            tally.excluded += 1
        else:
            count += 1
            yield Example(question, steps, answer, f"{opened.stem}/{split}/{number}", rules.answer_type)
    if not count:
        counts = f"{tally.bad} unreadable, {tally.untraced} without steps, {tally.excluded} in validation"
        raise UserError(f"{opened.source} has no usable row for split '{split}' ({counts}); check the file, or name another one")


def _refuse_unknown_layout(first: list[LocatedRow], form: Format, opened: Opened, rules: Rules) -> None:
    """Refuse data if none of its first rows can be read: then the row format or the answer type is wrong, not a single row.

    Raises:
        UserError: none of the first rows can be read.
    """
    errors = []
    for _, row in first:
        try:
            _parse(row, form, rules)
        except RowError as error:
            errors.append(error)
    if len(errors) < max(2, len(first)) or (form.partial and any(isinstance(error, AnswerError) for error in errors)):
        return
    raise UserError(
        f"{opened.source}: none of its first {len(first)} rows can be read as {form.name} ({form.description}); the first: {errors[0]}. "
        f"{_other_type(first, form, rules)}Known layouts are {_known_formats()}"
    )


def _other_type(first: list[LocatedRow], form: Format, rules: Rules) -> str:
    """Return a hint if the answers are of another type than the configured one, else an empty text."""
    for answer_type in ANSWER_TYPES:
        try:
            for _, row in first:
                _parse(row, form, replace(rules, answer_type=answer_type))
        except RowError:
            continue
        return f"Set dataset.answer_type to {answer_type} to read them. "
    return ""


def _known_formats() -> str:
    return "; ".join(f"{known.name}: {known.description}" for known in FORMATS.values())


def _format_of(first: list[LocatedRow], opened: Opened, cot_type: CotType | None) -> Format:
    rows = first_rows(first)
    form = recognise(rows)
    if form is None:
        found = f"the first row has {', '.join(rows[0]) or 'no fields'}" if rows else "there is no readable row"
        raise UserError(f"{opened.source} is of no known format: {found}, known are {_known_formats()}")
    forms = form.trace_forms([row for row in rows if form.matches(row)])
    if cot_type is not None and forms and cot_type not in forms:
        has = ", ".join(sorted(forms))
        raise UserError(
            f"{opened.source} has {has} steps, but dataset.cot_type is {cot_type}; set it to {has}, or dataset.name to another set"
        )
    return form


def _parse(row: object, form: Format, rules: Rules) -> tuple[str, tuple[str, ...], str]:
    if isinstance(row, BadRow):
        raise RowError(row.reason)
    assert isinstance(row, dict)
    question, steps, answer = form.parse(row, rules.cot_type or "equation")
    try:
        answer = canonical_answer(answer, rules.answer_type)
    except ValueError:
        raise AnswerError(f"answer {_SHORT.repr(answer)} {_NOT[rules.answer_type]}") from None
    if not all(map(is_text, (question, *steps, answer))):
        raise RowError("half of a character, such as \\ud800 alone, is no text")
    return question, steps, answer
