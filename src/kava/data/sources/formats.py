"""Row formats of published data sets, each with a check that recognises it and a parser.

Recognition depends on the content of the rows, never on the file name. To add a format, write a parser and append a `Format` to `FORMATS`.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from kava.data.example import CotType

Row = Mapping[str, Any]
# Question, steps, and the unprocessed answer of the row.
Parsed = tuple[str, tuple[str, ...], Any]

_ANNOTATION = re.compile(r"<<.*?>>")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_BARE = re.compile(r"[-+−$€£¥₹]{0,2}[0-9][^\n#<>]{0,40}|[A-H]|(?i:yes|no|true|false)")
_BOTH: frozenset[CotType] = frozenset({"equation", "natural_language"})
_EQUATION: frozenset[CotType] = frozenset({"equation"})
_SENTENCES: frozenset[CotType] = frozenset({"natural_language"})
_NONE: frozenset[CotType] = frozenset()


class RowError(ValueError):
    """One row is not valid; the message does not contain its position."""


class AnswerError(RowError):
    """The row is complete, but its answer is not of the requested type."""


@dataclass(frozen=True)
class Format:
    """A row format.

    Attributes:
        name: its name in errors and directory listings.
        description: the fields it needs, for error messages.
        matches: whether a row is of this format, by its fields.
        parse: (row, kind of trace) -> question, steps, unprocessed answer; raises RowError.
        trace_forms: which kinds of trace these rows can give; empty for evaluation-only rows.
        partial: some answers of this data set are not numbers; if numbers are requested, their rows are left out and counted.
    """

    name: str
    description: str
    matches: Callable[[Row], bool]
    parse: Callable[[Row, CotType], Parsed]
    trace_forms: Callable[[Sequence[Row]], frozenset[CotType]]
    partial: bool = False


def recognise(rows: Sequence[Row]) -> Format | None:
    """Return the format of at least half of the given first rows, else None: a README that quotes one line is not a data file."""
    votes = Counter(name for row in rows if (name := next((n for n, f in FORMATS.items() if f.matches(row)), None)))
    name, count = votes.most_common(1)[0] if votes else ("", 0)
    return FORMATS[name] if name and 2 * count >= len(rows) else None


def _text(row: Row, field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"field '{field}' is missing or no text")
    return value.strip()


def _after_hashes(text: str) -> tuple[str, str]:
    """Split ``reasoning #### answer`` into the reasoning and the answer."""
    reasoning, hashes, answer = text.rpartition("####")
    if not hashes or not answer.strip():
        raise RowError("no answer after '####'")
    return reasoning, answer.strip()


def _steps_in(text: str, cot_type: CotType) -> tuple[str, ...]:
    """Return the annotated equations of a reasoning text, or its lines (the sentences if it is a single line) without annotations."""
    if cot_type == "equation":
        return tuple(_ANNOTATION.findall(text))
    plain = _ANNOTATION.sub("", text).strip()
    steps = plain.split("\n") if "\n" in plain else _SENTENCE_END.split(plain)
    return tuple(step.strip() for step in steps if step.strip())


def _parse_icot(row: Row, cot_type: CotType) -> Parsed:
    question, bars, rest = _text(row, "text").partition("||")
    if not bars or not question.strip():
        raise RowError("no question before '||'")
    reasoning, answer = _after_hashes(rest)
    return question.strip(), _steps_in(reasoning, "equation"), answer


def _parse_steps(row: Row, cot_type: CotType) -> Parsed:
    steps = row.get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise RowError("field 'steps' is not a list of texts")
    kept = tuple(step.strip() for step in steps if step.strip())
    return _text(row, "question"), kept, row.get("answer")


def _steps_forms(rows: Sequence[Row]) -> frozenset[CotType]:
    lists = [row["steps"] for row in rows if isinstance(row.get("steps"), list)]
    steps = [step for several in lists for step in several if isinstance(step, str) and step.strip()]
    if not steps:
        return _BOTH
    equations = sum(_ANNOTATION.fullmatch(step.strip()) is not None for step in steps)
    return _EQUATION if 2 * equations > len(steps) else _SENTENCES


def _parse_gsm8k(row: Row, cot_type: CotType) -> Parsed:
    reasoning, answer = _after_hashes(_text(row, "answer"))
    lines = [line.strip() for line in _ANNOTATION.sub("", reasoning).split("\n") if line.strip()]
    return _text(row, "question"), tuple(_ANNOTATION.findall(reasoning) if cot_type == "equation" else lines), answer


def _plain(question: str, answer: str, reasoning: str | None = None) -> Callable[[Row, CotType], Parsed]:
    """Return a parser for rows that have each part in a separate field."""

    def parse(row: Row, cot_type: CotType) -> Parsed:
        written = row.get(reasoning or "")
        return _text(row, question), _steps_in(written, cot_type) if isinstance(written, str) else (), row.get(answer)

    return parse


def _parse_svamp(row: Row, cot_type: CotType) -> Parsed:
    question = _text(row, "question_concat") if "question_concat" in row else f"{_text(row, 'Body')} {_text(row, 'Question')}"
    return question, (), row.get("Answer")


def _parse_mawps(row: Row, cot_type: CotType) -> Parsed:
    solutions = row.get("lSolutions")
    if not isinstance(solutions, list) or len(solutions) != 1:
        raise RowError("field 'lSolutions' is not a list of one number")
    return _text(row, "sQuestion"), (), solutions[0]


def _parse_asdiv(row: Row, cot_type: CotType) -> Parsed:
    question, answer = f"{_text(row, 'body')} {_text(row, 'question')}", _text(row, "answer")
    if ";" in answer:
        raise AnswerError(f"answer '{answer}' has several parts")
    # The answer is followed by its unit: 9 (apples)
    return question, (), answer.partition("(")[0].strip()


def _parse_choices(row: Row, cot_type: CotType) -> Parsed:
    choices = row.get("choices")
    labels, texts = (choices.get("label"), choices.get("text")) if isinstance(choices, dict) else (None, None)
    if not isinstance(labels, list) or not isinstance(texts, list) or len(labels) != len(texts):
        raise RowError("field 'choices' has no 'label' and 'text' of equal length")
    offered = " ".join(f"{label}: {text}" for label, text in zip(labels, texts, strict=True))
    return f"{_text(row, 'question')} Choices: {offered}", (), row.get("answerKey")


def _parse_tabbed(row: Row, cot_type: CotType) -> Parsed:
    question, _, answer = _text(row, "text").partition("\t")
    return question.strip(), (), answer.strip()


def _has(*fields: str) -> Callable[[Row], bool]:
    return lambda row: set(fields) <= row.keys()


def _is_icot(row: Row) -> bool:
    text = row.get("text")
    return isinstance(text, str) and "||" in text and "####" in text.partition("||")[2]


def _is_tabbed(row: Row) -> bool:
    text = row.get("text")
    return row.keys() == {"text"} and isinstance(text, str) and text.count("\t") == 1


def _is_svamp(row: Row) -> bool:
    return "Answer" in row and ("question_concat" in row or {"Body", "Question"} <= row.keys())


def _is_bare(row: Row) -> bool:
    """Return whether a row has a question and an answer without reasoning: a number, a boolean or a letter."""
    answer = row.get("answer")
    if isinstance(answer, str):
        return "question" in row and _BARE.fullmatch(answer.strip()) is not None
    return "question" in row and isinstance(answer, bool | int | float | Decimal)


def _any(forms: frozenset[CotType]) -> Callable[[Sequence[Row]], frozenset[CotType]]:
    return lambda rows: forms


def _cot_forms(field: str) -> Callable[[Sequence[Row]], frozenset[CotType]]:
    """Return a function that finds the kinds of steps in a reasoning field: sentences if most texts have no annotated equations."""

    def forms(rows: Sequence[Row]) -> frozenset[CotType]:
        texts = [text for row in rows if isinstance(text := row.get(field), str) and text.strip()]
        annotated = sum(_ANNOTATION.search(text) is not None for text in texts)
        if 2 * annotated <= len(texts):
            return _SENTENCES
        return _EQUATION if all(not _ANNOTATION.sub("", text).strip() for text in texts) else _BOTH

    return forms


# The first match is the format of a row, so formats with more fields come before formats with fewer.
FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format("icot", "lines 'question||<<a>> <<b>> #### answer'", _is_icot, _parse_icot, _any(_EQUATION)),
        Format("tabbed", "lines 'question<TAB>answer'", _is_tabbed, _parse_tabbed, _any(_NONE)),
        Format("steps", "fields question, steps, answer", _has("question", "steps", "answer"), _parse_steps, _steps_forms),
        Format(
            "codi",
            "fields question, cot, answer",
            _has("question", "cot", "answer"),
            _plain("question", "answer", "cot"),
            _cot_forms("cot"),
        ),
        Format(
            "gsm-plus",
            "fields question, solution, answer, perturbation_type",
            _has("question", "solution", "answer", "perturbation_type"),
            _plain("question", "answer", "solution"),
            _any(_NONE),
            partial=True,
        ),
        Format(
            "math",
            "fields problem, solution, answer",
            _has("problem", "solution", "answer"),
            _plain("problem", "answer"),
            _any(_NONE),
            partial=True,
        ),
        Format(
            "mgsm", "fields question, answer_number", _has("question", "answer_number"), _plain("question", "answer_number"), _any(_NONE)
        ),
        Format("asdiv", "fields body, question, answer", _has("body", "question", "answer"), _parse_asdiv, _any(_NONE), partial=True),
        Format("choices", "fields question, choices, answerKey", _has("question", "choices", "answerKey"), _parse_choices, _any(_NONE)),
        Format("multiarith", "fields question, final_ans", _has("question", "final_ans"), _plain("question", "final_ans"), _any(_NONE)),
        Format("mawps", "fields sQuestion, lSolutions", _has("sQuestion", "lSolutions"), _parse_mawps, _any(_NONE)),
        Format("bare", "fields question, answer (the answer alone)", _is_bare, _plain("question", "answer"), _any(_NONE)),
        Format("gsm8k", "fields question, answer (ends in '#### answer')", _has("question", "answer"), _parse_gsm8k, _any(_BOTH)),
        Format(
            "adapters",
            "fields instruction, output, answer",
            _has("instruction", "output", "answer"),
            _plain("instruction", "answer"),
            _any(_NONE),
        ),
        Format("gsm-hard", "fields input, target", _has("input", "target"), _plain("input", "target"), _any(_NONE)),
        Format("svamp", "fields Body, Question, Answer", _is_svamp, _parse_svamp, _any(_NONE)),
    )
}
