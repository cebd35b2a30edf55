"""The three kinds of answers: numbers (`kava.data.answers`), choices (a letter, yes or no) and texts; each has an entry in `ANSWER_TYPES`.

read_answer("B. They laugh", "The answer is:", "choice", after_prompt=True)  ->  "B"
same_answer("True", "yes", "choice")  ->  True
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any, Literal

from kava.data.answers import NUMBERS, answers_equal, canonical_number, extract_answer, find_answer

AnswerType = Literal["number", "choice", "text"]

# Letters after H count only at the end of the text or before ")", "." or ":", because "I" is also a common word.
_CHOICE = re.compile(r"\b(?:[A-H]|[I-Z](?=\s*(?:[).:]|$))|(?i:yes|no|true|false))\b")
_WHOLE_CHOICE = re.compile(r"\(?([A-Z]|(?i:yes|no|true|false))\)?[.:]?")
_TRUTH = {"true": "yes", "false": "no"}


@dataclass(frozen=True)
class Kind:
    """How answers of one type are handled.

    Attributes:
        canonical: an answer of a data set -> the same answer as the model is trained to write it; raises ValueError for another type.
        read: (generated text, answer prompt, whether the text follows the prompt) -> the answer in the text, or None.
        same: whether two answers are the same.
        samples: answers that begin differently; the leading tokens that they share are the fixed text (`SequenceBuilder`).
    """

    canonical: Callable[[Any], str]
    read: Callable[[str, str, bool], str | None]
    same: Callable[[str, str], bool]
    samples: tuple[str, ...]


def canonical_answer(value: Any, answer_type: AnswerType) -> str:
    """Return an answer of a data set as the model is trained to write it.

    Raises:
        ValueError: `value` is not an answer of this type.
    """
    return ANSWER_TYPES[answer_type].canonical(value)


def read_answer(text: str, answer_prompt: str, answer_type: AnswerType, *, after_prompt: bool = False) -> str | None:
    """Return the answer in generated text: the first one after the last answer prompt, else the last one in the text.

    Args:
        text: generated text.
        answer_prompt: text before the answer.
        answer_type: type of the answer.
        after_prompt: the prompt was part of the model's input and `text` follows it, so the first answer counts.
    """
    return ANSWER_TYPES[answer_type].read(text, answer_prompt, after_prompt)


def same_answer(a: str | None, b: str, answer_type: AnswerType) -> bool:
    """Return whether two answers agree: by value, by letter (true is yes), or word by word, ignoring case and a final full stop."""
    return a is not None and ANSWER_TYPES[answer_type].same(a, b)


def _canonical_number(value: Any) -> str:
    if not isinstance(value, str | int | float | Decimal):
        raise ValueError(f"{value!r} is not a number")
    return canonical_number(value)


def _canonical_choice(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    found = _WHOLE_CHOICE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"{value!r} is no choice")
    return found[1]


def _same_choice(a: str, b: str) -> bool:
    left, right = a.lower(), b.lower()
    return _TRUTH.get(left, left) == _TRUTH.get(right, right)


def _canonical_text(value: Any) -> str:
    words = value.split() if isinstance(value, str) else []
    if not words:
        raise ValueError(f"{value!r} is no text")
    return " ".join(words)


def _lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.split("\n") if line.strip()]


def _same_text(a: str, b: str) -> bool:
    return " ".join(a.split()).casefold().rstrip(" .") == " ".join(b.split()).casefold().rstrip(" .")


ANSWER_TYPES: dict[AnswerType, Kind] = {
    "number": Kind(
        _canonical_number, lambda text, prompt, behind: extract_answer(text, prompt, after_prompt=behind), answers_equal, NUMBERS
    ),
    "choice": Kind(_canonical_choice, partial(find_answer, _CHOICE.findall), _same_choice, (*"ABCDE", "yes", "no", "True", "False")),
    "text": Kind(
        _canonical_text,
        partial(find_answer, _lines),
        _same_text,
        ("Tom is a bear.", "Every cat", "yes", "no", "A", "the end", "42", "In May"),
    ),
}


def same_prediction(a: str | None, b: str | None, answer_type: AnswerType) -> bool:
    """Return whether two answers of a model agree (see `same_answer`); so do two times none."""
    return a == b or (b is not None and same_answer(a, b, answer_type))
