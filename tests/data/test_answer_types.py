"""Choices and texts as answers: read, written, compared, and taught. Numbers have their own tests (`test_answers.py`)."""

from typing import Any

import pytest

from helpers.tiny import PROMPT, mini_model, mini_tokenizer
from kava.data.answer_types import ANSWER_TYPES, AnswerType, canonical_answer, read_answer, same_answer, same_prediction
from kava.data.example import Example
from kava.data.sequences import SequenceBuilder
from kava.evaluate.accuracy import evaluate_accuracy
from kava.generate import Reasoner


@pytest.mark.parametrize(
    ("value", "answer_type", "expected"),
    [
        *((7, "number", "7"), ("1,080", "number", "1080"), ("A", "choice", "A"), ("(B)", "choice", "B"), ("C.", "choice", "C")),
        *((True, "choice", "yes"), (False, "choice", "no"), ("True", "choice", "True"), (" Tom  is a\nbear. ", "text", "Tom is a bear.")),
    ],
)
def test_answers_are_written_one_way(value: Any, answer_type: AnswerType, expected: str) -> None:
    assert canonical_answer(value, answer_type) == expected


@pytest.mark.parametrize(
    ("value", "answer_type"),
    [
        (True, "number"),
        (None, "number"),
        ([1], "number"),
        ("many", "number"),
        (None, "choice"),
        ("", "choice"),
        ("bank", "choice"),
        (7, "text"),
        (" ", "text"),
    ],
)
def test_what_is_no_answer_is_refused(value: Any, answer_type: AnswerType) -> None:
    with pytest.raises(ValueError, match=r"no|not"):
        canonical_answer(value, answer_type)


@pytest.mark.parametrize(
    ("text", "answer_type", "behind", "expected"),
    [
        (" B\nbecause A is wrong", "choice", True, "B"),
        (" (C) the bank", "choice", True, "C"),
        (" yes, it can", "choice", True, "yes"),
        (" nothing here", "choice", True, None),
        (" J", "choice", True, "J"),
        (" (I) the river", "choice", True, "I"),
        (" I think B", "choice", True, "B"),
        ("A or B? The answer is: D. Not A.", "choice", False, "D"),
        ("It is A, no, B", "choice", False, "B"),
        (" Tom is a bear.\nTom", "text", True, "Tom is a bear."),
        ("\n Tom is a  bear.", "text", True, "Tom is a bear."),
        ("Every cat. The answer is: Tom is a bear.\nmore", "text", False, "Tom is a bear."),
        ("one\ntwo\n", "text", False, "two"),
        (" ", "text", True, None),
        ("18\nTom has 5 apples", "number", True, "18"),
        ("He has 5. the answer is : 7 of 9", "number", False, "7"),
    ],
)
def test_reading(text: str, answer_type: AnswerType, behind: bool, expected: str | None) -> None:
    assert read_answer(text, PROMPT, answer_type, after_prompt=behind) == expected


@pytest.mark.parametrize(
    ("a", "b", "answer_type", "same"),
    [
        *(("B", "B", "choice", True), ("b", "B", "choice", True), ("A", "B", "choice", False), ("True", "yes", "choice", True)),
        *(("false", "No", "choice", True), ("yes", "no", "choice", False), (None, "A", "choice", False)),
        *(
            ("tom is  a bear", "Tom is a bear.", "text", True),
            ("Tom is a cat.", "Tom is a bear.", "text", False),
            (None, "x", "text", False),
        ),
        *(("18.0", "18", "number", True), ("18", "18.5", "number", False), ("yes", "18", "number", False)),
    ],
)
def test_comparison(a: str | None, b: str, answer_type: AnswerType, same: bool) -> None:
    assert same_answer(a, b, answer_type) is same
    assert same_prediction(a, b, answer_type) is same
    assert same_prediction(b, a, answer_type) is same


@pytest.mark.parametrize("answer_type", ANSWER_TYPES)
def test_two_predictions_without_an_answer_agree(answer_type: AnswerType) -> None:
    assert same_prediction(None, None, answer_type)


class Words:
    """A tokenizer that gives each word an id and writes a space before a digit as a token of its own, as Llama-3's does."""

    eos_token_id = 0

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def __call__(self, text: Any, **_: Any) -> Any:
        import re
        from types import SimpleNamespace

        texts = [text] if isinstance(text, str) else text
        found = [
            [self.ids.setdefault(piece, len(self.ids) + 1) for piece in re.findall(r" (?=\d)|\d| ?[^\W\d]+|[^\w\s]|\s", each)]
            for each in texts
        ]
        return SimpleNamespace(input_ids=found[0] if isinstance(text, str) else found)


def test_the_fixed_text_is_that_of_the_answers_type() -> None:
    """The space is fixed text before numbers only: before a word it belongs to the word."""
    lengths = {answer_type: len(SequenceBuilder(Words(), PROMPT, answer_type=answer_type).prompt_ids) for answer_type in ANSWER_TYPES}
    assert lengths == {"number": 5, "choice": 4, "text": 4}
    builder = SequenceBuilder(Words(), PROMPT, answer_type="choice")
    assert builder.encode(Example("Where ?", (), "B", "x", "choice")).answer == [*builder.prompt_ids, *builder.tokenizer(" B").input_ids, 0]


def test_an_evaluation_marks_words_as_words() -> None:
    builder = SequenceBuilder(mini_tokenizer(), PROMPT, answer_type="text")
    reasoner = Reasoner(mini_model("llama", "kava"), builder, 2, 1)
    written = reasoner.generate(["Tom has 2 apples ."], max_new_tokens=4)[0].answer
    examples = [Example("Tom has 2 apples .", (), answer, answer, "text") for answer in (written or "nothing", "another answer")]
    evaluation = evaluate_accuracy(reasoner, examples, batch_size=2, max_new_tokens=4)
    assert [item.correct for item in evaluation.answered] == [written is not None, False]
    assert evaluation.correct == evaluation.correct_close(0.001)
