"""The common representation of one problem from any data set."""

import re
from dataclasses import dataclass
from typing import Literal

from kava.data.answer_types import AnswerType

CotType = Literal["equation", "natural_language"]
# Unpaired surrogates: JSON escapes and file names that Python cannot decode can contain them; no encoding or tokenizer accepts them.
_HALF_CHARACTERS = re.compile("[\ud800-\udfff]")


def is_text(text: str) -> bool:
    """Return whether a string contains only complete characters (no surrogates)."""
    return _HALF_CHARACTERS.search(text) is None


@dataclass(frozen=True, slots=True)
class Example:
    """A question, its written reasoning and its answer, as text.

    Attributes:
        question: the problem.
        steps: chain-of-thought steps in order, either ``<<48/2=24>>`` forms or sentences; empty when there is no trace.
        answer: as returned by `kava.data.answer_types.canonical_answer`, e.g. ``72``.
        answer_type: type of the answer, which determines how other answers are compared with it.
        id: ``<file stem, directory or hub name>/<split>/<row number>``, unique within a loaded split.
    """

    question: str
    steps: tuple[str, ...]
    answer: str
    id: str
    answer_type: AnswerType = "number"
