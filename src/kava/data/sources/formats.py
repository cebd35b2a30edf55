"""The row formats that published data sets come in, each with how it is recognised and how it is read.

Recognition looks at what rows hold, never at a file's name. To add a format, write a parser and append a `Format` to `FORMATS`.
"""

import re
import reprlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from kava.data.answers import canonical_number
from kava.data.example import CotType

Row = Mapping[str, Any]
Parsed = tuple[str, tuple[str, ...], str]

_ANNOTATION = re.compile(r"<<.*?>>")
_BOTH: frozenset[CotType] = frozenset({"equation", "natural_language"})
_EQUATION: frozenset[CotType] = frozenset({"equation"})
_SENTENCES: frozenset[CotType] = frozenset({"natural_language"})
_NONE: frozenset[CotType] = frozenset()


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


class RowError(ValueError):
    """What is wrong with one row, without its place."""


@dataclass(frozen=True)
class Format:
    """A row format.

    Attributes:
        name: what errors and directory listings call it.
        description: the fields it needs, for error messages.
        matches: whether a row is of this format, by its fields.
        parse: (row, kind of trace) -> question, steps, canonical answer; raises RowError.
        trace_forms: which kinds of trace these rows can give; empty for evaluation-only rows.
    """

    name: str
    description: str
    matches: Callable[[Row], bool]
    parse: Callable[[Row, CotType], Parsed]
    trace_forms: Callable[[Sequence[Row]], frozenset[CotType]]


def recognise(rows: Sequence[Row]) -> Format | None:
    """The format that at least half of the given first rows have, or None: a README that quotes one line is no data."""
    votes = Counter(name for row in rows if (name := next((n for n, f in FORMATS.items() if f.matches(row)), None)))
    name, count = votes.most_common(1)[0] if votes else ("", 0)
    return FORMATS[name] if name and 2 * count >= len(rows) else None


def _text(row: Row, field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"field '{field}' is missing or no text")
    return value.strip()


def _answer(value: Any, what: str) -> str:
    try:
        if isinstance(value, str | int | float | Decimal):
            return canonical_number(value)
    except ValueError:
        pass
    raise RowError(f"{what} {_SHORT.repr(value)} is not a number")


def _after_hashes(text: str) -> tuple[str, str]:
    """Split ``reasoning #### answer`` into the reasoning and the canonical answer."""
    reasoning, hashes, answer = text.rpartition("####")
    if not hashes or not answer.strip():
        raise RowError("no answer after '####'")
    return reasoning, _answer(answer.strip(), "answer")


def _parse_icot(row: Row, cot_type: CotType) -> Parsed:
    question, bars, rest = _text(row, "text").partition("||")
    if not bars or not question.strip():
        raise RowError("no question before '||'")
    reasoning, answer = _after_hashes(rest)
    return question.strip(), tuple(_ANNOTATION.findall(reasoning)), answer


def _parse_steps(row: Row, cot_type: CotType) -> Parsed:
    steps = row.get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise RowError("field 'steps' is not a list of texts")
    kept = tuple(step.strip() for step in steps if step.strip())
    return _text(row, "question"), kept, _answer(row.get("answer"), "answer")


def _steps_forms(rows: Sequence[Row]) -> frozenset[CotType]:
    lists = [row["steps"] for row in rows if isinstance(row.get("steps"), list)]
    steps = [step for several in lists for step in several if isinstance(step, str) and step.strip()]
    if not steps:
        return _BOTH
    equations = sum(_ANNOTATION.fullmatch(step.strip()) is not None for step in steps)
    return _EQUATION if 2 * equations > len(steps) else _SENTENCES


def _parse_gsm8k(row: Row, cot_type: CotType) -> Parsed:
    reasoning, answer = _after_hashes(_text(row, "answer"))
    if cot_type == "equation":
        steps = _ANNOTATION.findall(reasoning)
    else:
        steps = [line.strip() for line in _ANNOTATION.sub("", reasoning).split("\n") if line.strip()]
    return _text(row, "question"), tuple(steps), answer


def _parse_gsm_hard(row: Row, cot_type: CotType) -> Parsed:
    return _text(row, "input"), (), _answer(row.get("target"), "target")


def _parse_svamp(row: Row, cot_type: CotType) -> Parsed:
    question = _text(row, "question_concat") if "question_concat" in row else f"{_text(row, 'Body')} {_text(row, 'Question')}"
    return question, (), _answer(row.get("Answer"), "Answer")


def _has(*fields: str) -> Callable[[Row], bool]:
    return lambda row: set(fields) <= row.keys()


def _is_icot(row: Row) -> bool:
    text = row.get("text")
    return isinstance(text, str) and "||" in text and "####" in text.partition("||")[2]


def _is_svamp(row: Row) -> bool:
    return "Answer" in row and ("question_concat" in row or {"Body", "Question"} <= row.keys())


FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format("icot", "lines 'question||<<a>> <<b>> #### answer'", _is_icot, _parse_icot, lambda rows: _EQUATION),
        Format("steps", "fields question, steps, answer", _has("question", "steps", "answer"), _parse_steps, _steps_forms),
        Format("gsm8k", "fields question, answer", _has("question", "answer"), _parse_gsm8k, lambda rows: _BOTH),
        Format("gsm-hard", "fields input, target", _has("input", "target"), _parse_gsm_hard, lambda rows: _NONE),
        Format("svamp", "fields Body, Question, Answer", _is_svamp, _parse_svamp, lambda rows: _NONE),
    )
}
