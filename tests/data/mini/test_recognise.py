"""Which questions are the built-in kind, and what they ask."""

import pytest

from kava.config import MiniDataConfig
from kava.data.mini.chains import Chain, group_of
from kava.data.mini.problems import EXAMPLE, SPLITS, generate
from kava.data.mini.recognise import describe_steps, read_question, why_unanswerable

CONFIG = MiniDataConfig(modulus=5, min_steps=2, max_steps=3, num_train=400, num_eval=200)
TOLD = "Tom packs apples in boxes of 5 and has 4 left . He finds 1 more . Then he gives 4 apples to a friend . Tom doubles the apples ."
ASKED = "How many apples are outside the boxes ?"


@pytest.mark.parametrize("modulus", [5, 10])
@pytest.mark.parametrize("split", SPLITS)
def test_every_generated_question_is_read_as_it_was_meant(split: str, modulus: int) -> None:
    config = CONFIG.model_copy(update={"modulus": modulus})
    for example in generate(split, config):
        chain = read_question(example.question, modulus)
        assert chain is not None, example.question
        before = [chain.start, *chain.values(modulus)]
        equations = [f"<<{a}{o}{n}={r}>>" for a, (o, n), r in zip(before, chain.steps, before[1:], strict=False)]
        assert tuple(equations) == example.steps
        assert str(before[-1]) == example.answer
        assert why_unanswerable(example.question, config) is None


def test_the_example_is_one_that_no_training_problem_tells() -> None:
    chain = read_question(EXAMPLE, 5)
    assert f"{TOLD} {ASKED}" == EXAMPLE
    assert chain
    assert group_of(chain, 5) == "test"
    assert chain.values(5) == [0, 1, 2]


def test_marks_need_no_spaces_and_boxes_are_of_one_size() -> None:
    question = f"{TOLD} {ASKED}".replace(" .", ".").replace(" ?", "?")
    assert read_question(question, 5) == read_question(f"{TOLD} {ASKED}", 5) == Chain(4, (("+", 1), ("-", 4), ("*", 2)))
    assert read_question(question, 6) is None


@pytest.mark.parametrize(
    "question",
    [
        "", "2 + 2", "2 + 2 ?", TOLD, ASKED, f"{ASKED} {TOLD}", f"{TOLD} {ASKED} and why", f"{TOLD} {ASKED} {ASKED}",
        f"{TOLD} Anna has 2 apples . {ASKED}",  # whose apples?
        f"{TOLD} How many pears are outside the boxes ?",
        f"{TOLD} Anna finds 2 more . {ASKED}",
        "Tom has 3 apples . He finds 4 more . How many apples does Tom have ?",
        "汤姆把苹果装进盒子 , 每盒 5 个 . 还剩几个 ?",
        "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips did Natalia sell?",
    ],
)  # fmt: skip
def test_other_questions_are_told_apart(question: str) -> None:
    assert read_question(question, 5) is None
    assert "no question of the built-in kind" in str(why_unanswerable(question, CONFIG))


def test_someone_elses_other_things_change_nothing() -> None:
    assert read_question(f"{TOLD} Then Anna finds 2 more pears . {ASKED}", 5) == read_question(f"{TOLD} {ASKED}", 5)


def test_lengths_that_were_not_trained_are_said() -> None:
    one = TOLD.replace(" Then he gives 4 apples to a friend . Tom doubles the apples .", "")
    assert why_unanswerable(f"{one} {ASKED}", CONFIG) == "this has 1 step; this model was trained on questions with 2 to 3"
    assert "has 4 steps" in str(why_unanswerable(f"{TOLD} Tom loses 1 . {ASKED}", CONFIG))


@pytest.mark.parametrize(
    ("chain", "told"),
    [
        (Chain(3, (("+", 4), ("-", 3))), "3 + 4 = 7, a box and 2; 2 - 3: open a box, 5 + 2 - 3 = 4"),
        (Chain(12, (("*", 3), ("-", 1))), "12 * 3 = 36, 7 boxes and 1; 1 - 1 = 0"),
        (Chain(1, (("-", 11),)), "1 - 11: open 2 boxes, 10 + 1 - 11 = 0"),
    ],
)
def test_the_steps_in_words(chain: Chain, told: str) -> None:
    assert describe_steps(chain, 5) == told


def test_the_steps_in_words_are_right() -> None:
    for example in generate("larger", CONFIG):
        chain = read_question(example.question, 5)
        assert chain
        for step, rest in zip(describe_steps(chain, 5).split("; "), chain.values(5), strict=True):
            left, _, right = step.split(",")[-1 if "open" in step else 0].partition("=")
            assert eval(left) == int(right)
            assert int(step.split()[-1]) == rest
