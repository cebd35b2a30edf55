"""Eighty outputs and the number that each one answers: behind the fixed text (latent and direct methods), and in a written text."""

import pytest

from kava.data.answers import answers_close, answers_equal, canonical_number, extract_answer

PROMPT = "The answer is:"
# What was written; the number where it follows the prompt; the number where it is all there is (no prompt in it: the last).
BEHIND_OR_LAST = [
    # Numbers that go on.
    ("18\nTom has 5 apples", "18", "5"),
    ("18 18 18 1", "18", "1"),
    ("3 boxes of 12", "3", "12"),
    ("18, 20", "18", "20"),
    ("18. 20", "18", "20"),
    ("18 and 20", "18", "20"),
    ("18 (5 + 13)", "18", "13"),
    ("18The answer is: 5", "18", "5"),
    ("180 180 180 18", "180", "18"),
    ("7 7 7", "7", "7"),
    # Plain ones, and what surrounds them.
    ("72", "72", "72"),
    (" 72 ", "72", "72"),
    ("72.", "72", "72"),
    ("72.0", "72.0", "72.0"),
    ("72 apples.", "72", "72"),
    ("72kg", "72", "72"),
    ("007", "007", "007"),
    ("0", "0", "0"),
    ("**72**", "72", "72"),
    ("\\boxed{72}", "72", "72"),
    ("$\\boxed{72}$", "72", "72"),
    ("x = 72", "72", "72"),
    ("(72)", "72", "72"),
    # Groups of digits.
    ("1,234", "1234", "1234"),
    ("1,234,567.50", "1234567.50", "1234567.50"),
    ("1,23,456", "123456", "123456"),
    ("12,34,567", "1234567", "1234567"),
    ("12 000", "12000", "12000"),
    ("1 234 567", "1234567", "1234567"),
    ("12\u00a0000", "12000", "12000"),
    ("12\u202f000.5", "12000.5", "12000.5"),
    ("1{,}234", "1234", "1234"),
    ("12\\,000", "12000", "12000"),
    ("1,2", "1", "2"),
    ("12,3456", "12", "3456"),
    ("2003 100", "2003", "100"),
    # Signs.
    ("-7", "-7", "-7"),
    ("- 7", "-7", "-7"),
    ("= - 7", "-7", "-7"),
    ("(- 7)", "-7", "-7"),
    ("−7", "-7", "-7"),
    ("–7", "-7", "-7"),
    ("‑7", "-7", "-7"),
    ("+7", "7", "7"),
    ("- $7", "-7", "-7"),
    ("-$7", "-7", "-7"),
    ("$-7", "-7", "-7"),
    ("16-3", "16", "3"),
    ("16 - 3", "16", "3"),
    ("5–7", "5", "7"),
    ("apples\n- 7 red", "7", "7"),
    # Money and percent.
    ("$18", "18", "18"),
    ("\\$18", "18", "18"),
    ("$ 18.50", "18.50", "18.50"),
    ("€18", "18", "18"),
    ("18 dollars", "18", "18"),
    ("18%", "18", "18"),
    ("18\\%", "18", "18"),
    # Fractions.
    ("3/4", "3/4", "3/4"),
    ("\\frac{3}{4}", "3/4", "3/4"),
    ("-\\frac{3}{4}", "-3/4", "-3/4"),
    ("\\dfrac{ 3 }{ 4 }", "3/4", "3/4"),
    ("2 1/2", "5/2", "5/2"),
    ("-2 1/2", "-5/2", "-5/2"),
    ("2\\frac{1}{2}", "5/2", "5/2"),
    ("½", "1/2", "1/2"),
    ("2½ cups", "5/2", "5/2"),
    ("0/5", "0/5", "0/5"),
    ("1/2/2003", "1", "2003"),
    # Decimals and exponents.
    (".5", ".5", ".5"),
    ("0.30000000000000004", "0.30000000000000004", "0.30000000000000004"),
    ("1.8e1", "1.8e1", "1.8e1"),
    ("1,8e1", "1.8e1", "1.8e1"),
    ("2E-3", "2E-3", "2E-3"),
    # Digits of other scripts.
    ("１８", "18", "18"),
    ("－１，２３４．５", "-1234.5", "-1234.5"),
    ("١٨", "18", "18"),
    ("٣٫٥", "3.5", "3.5"),
    # Nothing.
    ("", None, None),
    ("eighteen", None, None),
]  # fmt: skip


def test_there_are_eighty() -> None:
    assert len({text for text, _, _ in BEHIND_OR_LAST}) == len(BEHIND_OR_LAST) == 80


@pytest.mark.parametrize(("text", "behind", "last"), BEHIND_OR_LAST)
def test_the_number_in_an_output(text: str, behind: str | None, last: str | None) -> None:
    assert extract_answer(text, PROMPT, behind_prompt=True) == behind
    if PROMPT not in text:
        assert extract_answer(text, PROMPT) == last
    # A written chain of thought says the prompt itself: behind the last one as behind the one that is given.
    assert extract_answer(f"5 + 8 = 13\nThe answer is: 13\nThe answer is: {text}", PROMPT) == (last if PROMPT in text else behind or "13")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("\\frac{3}{4}", "0.75"), ("2 1/2", "2.5"), ("12 000", "12000"), ("1,23,456", "123456"), ("- 7", "-7"), ("–7", "-7"),
        ("１８", "18"), ("١٨", "18"), ("0/5", "0"), ("-0/5", "0"), ("1,8e1", "18"), ("1/3", "1/3"),
    ],
)  # fmt: skip
def test_a_gold_answer_is_read_alike(text: str, value: str) -> None:
    assert canonical_number(text) == value
    assert answers_equal(text, value)
    assert answers_equal(extract_answer(text, PROMPT, behind_prompt=True), value)


@pytest.mark.parametrize(
    ("prediction", "gold", "equal", "close"),
    [
        ("0.3", "0.30000000000000004", False, True), ("0.333", "1/3", False, True), ("18.0009", "18", False, True),
        ("18.001", "18", False, False), ("-18", "18", False, False), ("1/3", "2/6", True, True), ("1e999", "1", False, False),
        ("3/0", "3", False, False), (None, "18", False, False),
    ],
)  # fmt: skip
def test_equal_and_close(prediction: str | None, gold: str, equal: bool, close: bool) -> None:
    """Within 0.001, as GSM8K-Hard's authors compare."""
    assert (answers_equal(prediction, gold), answers_close(prediction, gold)) == (equal, close)


def test_the_tolerance_is_exact() -> None:
    """0.1 as a binary fraction is a little more than a tenth."""
    assert answers_close("1.09", "1", 0.1)
    assert not answers_close("1.1", "1", 0.1)
    assert not answers_close("1.001", "1")
