"""One problem, whatever data set it comes from."""

import re
from dataclasses import dataclass
from typing import Literal

from kava.data.answer_types import AnswerType

CotType = Literal["equation", "natural_language"]
# JSON's escapes and Python's reading of odd file names can give these alone; no encoding and no tokenizer takes them.
_HALF_CHARACTERS = re.compile("[\ud800-\udfff]")


def is_text(text: str) -> bool:
    """Whether a string holds whole characters only."""
    return _HALF_CHARACTERS.search(text) is None


@dataclass(frozen=True, slots=True)
class Example:
    """A question, its written reasoning and its answer, as text.

    Attributes:
        question: the problem.
        steps: chain-of-thought steps in order, either ``<<48/2=24>>`` forms or sentences; empty when there is no trace.
        answer: as `kava.data.answer_types.canonical_answer` gives it, e.g. ``72``.
        answer_type: what the answer is, and so how another is compared with it.
        id: ``<file stem, directory or hub name>/<split>/<row number>``, unique within a loaded split.
    """

    question: str
    steps: tuple[str, ...]
    answer: str
    id: str
    answer_type: AnswerType = "number"
