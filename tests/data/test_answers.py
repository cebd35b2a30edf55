"""Extraction, reading, comparing and writing of numbers.

Eighty outputs and the number that each one answers: behind the fixed text (latent and direct methods), and in a written text.
"""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kava.data.answers import answers_close, answers_equal, canonical_number, extract_answer

PROMPT = "The answer is:"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He has 3. The answer is: 72", "72"),
        ("The answer is: 72.", "72"),
        ("The answer is: 18.0", "18.0"),
        ("The answer is: $1,234,567.50", "1234567.50"),
        ("The answer is: -$5", "-5"),
        ("The answer is: $-5", "-5"),
        ("The answer is: -$-5", "-5"),
        ("The answer is: $ 12", "12"),
        ("The answer is: −7", "-7"),
        ("The answer is: 45%", "45"),
        ("The answer is: .5 cups", ".5"),
        ("The answer is: 1.8e1", "1.8e1"),
        ("The answer is: 1/2", "1/2"),
        ("The answer is: 12 apples, 3 of them red", "12"),
        ("The answer is: 3 The answer is: 4", "4"),
        ("THE ANSWER  IS : 7 .", "7"),
        ("2 and 5. The answer is: nothing", "5"),
        ("<<7+5=2>> <<2-3=9>>", "9"),
        ("16-3", "3"),
        ("16 - 3", "3"),
        ("= -3", "-3"),
        ("(-4)", "-4"),
        ("one,2", "2"),
        ("1,2", "2"),
        ("12,3456", "3456"),
        ("on 1/2/2003", "2003"),
        ("The answer is: Rs.1,500", "1500"),
        ("approx.7", "7"),
        ("on 12.05.2024", "2024"),
        ("no number at all", None),
        ("", None),
    ],
)
def test_extract_answer(text: str, expected: str | None) -> None:
    assert extract_answer(text, PROMPT) == expected


def test_extract_answer_with_other_prompts() -> None:
    assert extract_answer("1 + 2 = 3 #### 4 because 5", "####") == "4"
    assert extract_answer("Answer -> 6 then 7", "Answer ->") == "6"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", "72"),
        (" 1,080 ", "1080"),
        ("-$1,234.50", "-1234.5"),
        ("5%", "5"),
        ("5.", "5"),
        ("1.8e1", "18"),
        ("1,8e1", "18"),
        ("1E-3", "0.001"),
        ("3/8", "0.375"),
        ("-6/4", "-1.5"),
        ("0.30000000000000004", "0.30000000000000004"),
    ],
)
def test_a_number_keeps_its_value(text: str, value: str) -> None:
    assert Decimal(canonical_number(text)) == Decimal(value)


@pytest.mark.parametrize("text", ["", "seven", "1,2", "12,34", "1 2", "--5", "-$-5", "1/0", "1e9999", "nan", "inf", "7 apples"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number"):
        canonical_number(text)


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ("18", "18.0", True),
        ("1.8e1", "18", True),
        ("18,000", "18000", True),
        ("-0", "0", True),
        ("1/2", "0.5", True),
        ("2/6", "1/3", True),
        ("0.333", "1/3", False),
        ("0.1", "0.10000000000000001", False),
        ("0.3", "0.30000000000000004", False),
        ("1e999", "1", False),
        (None, "18", False),
        ("text", "text", False),
    ],
)
def test_answers_equal(a: str | None, b: str, equal: bool) -> None:
    assert answers_equal(a, b) is equal


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-9867630.0, "-9867630"),
        (0.1 + 0.2, "0.30000000000000004"),
        (2.0107e-06, "0.0000020107"),
        (1e22, "10000000000000000000000"),
        (-0.0, "0"),
        (100, "100"),
        ("1,080", "1080"),
        ("007", "7"),
        ("1.50", "1.5"),
        ("1/2", "0.5"),
        ("2/6", "1/3"),
        (Decimal("1E+3"), "1000"),
    ],
)
def test_canonical_number(value: str | int | float | Decimal, text: str) -> None:
    assert canonical_number(value) == text


@pytest.mark.parametrize("value", [True, float("nan"), float("inf"), "", "x", "1/0", "--5"])
def test_canonical_number_refuses(value: str | float) -> None:
    with pytest.raises(ValueError, match="is not a number"):
        canonical_number(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_survives_its_canonical_text_exactly(value: float) -> None:
    text = canonical_number(value)
    assert float(text) == value
    assert "e" not in text.lower()
    assert not text.endswith(".0")
    assert text == canonical_number(text)


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=4))
def test_every_spelling_of_a_decimal_agrees(value: Decimal) -> None:
    plain = canonical_number(value)
    for spelling in (f"{value:f}", f"{value:,f}", f"{value:E}", f"{value:f}0"):
        assert Decimal(canonical_number(spelling)) == value
        assert answers_equal(spelling, plain)
    assert not answers_equal(canonical_number(value + Decimal("0.0001")), plain)


@given(st.integers(-(10**14), 10**14), st.integers(1, 10**14))
def test_fractions_are_exact(numerator: int, denominator: int) -> None:
    text = canonical_number(f"{numerator}/{denominator}")
    assert Fraction(text) == Fraction(numerator, denominator)
    assert answers_equal(f"{numerator}/{denominator}", text)


@given(st.text(), st.integers(-(10**9), 10**9))
def test_the_number_behind_the_prompt_wins(before: str, number: int) -> None:
    assert extract_answer(f"{before} {PROMPT} {number:,}", PROMPT) == str(number)


@given(st.text(alphabet="0123456789.,-+−$€%/eE <>=()x\n"))
def test_whatever_is_extracted_is_a_number(text: str) -> None:
    found = extract_answer(text, PROMPT)
    if found is not None:
        assert "/" in found or Decimal(canonical_number(found)).is_finite()
        assert not set(found) & set(",$€% ")


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
    assert extract_answer(text, PROMPT, after_prompt=True) == behind
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
    assert answers_equal(extract_answer(text, PROMPT, after_prompt=True), value)


@pytest.mark.parametrize(
    ("text", "ascii_text"),
    [
        ("1⁄2", "1/2"), ("2 1⁄2", "2 1/2"), ("−1⁄2", "-1/2"), ("$1⁄2", "$1/2"), ("1⁄2⁄2003", "1/2/2003"), ("1∕2", "1/2"), ("21⁄2", "21/2"),
        ("1⁄0", "1/0"), ("¹⁄₂", "1/2"), ("2¹⁄₂", "2 1/2"), ("¹²/₁₃", "12/13"), ("½", "1/2"), ("-2½ cups", "-2 1/2 cups"), ("٣½", "3 1/2"),
        ("⅐", "1/7"), ("⅞%", "7/8%"), ("⅟3", "1/3"), ("4⅟3", "4 1/3"), ("2↉", "2 0/3"), ("½3", "1/2 3"), ("½¾", "1/2 3/4"),
    ],
)  # fmt: skip
def test_a_fraction_reads_as_its_ascii_form(text: str, ascii_text: str) -> None:
    """In an output behind the prompt, in one without it, and as an answer of the data, on either side of a comparison."""
    for behind in (True, False):
        assert extract_answer(text, PROMPT, after_prompt=behind) == extract_answer(ascii_text, PROMPT, after_prompt=behind)
    for other in ("1/2", "5/2", "-1/2", "1/7", text, ascii_text):
        assert answers_equal(text, other) == answers_equal(ascii_text, other)
        assert answers_equal(other, text) == answers_equal(other, ascii_text)


@given(st.integers(0, 99), st.integers(0, 10**6), st.integers(1, 10**6), st.sampled_from(["⁄", "∕"]))
def test_the_fraction_slash_is_a_slash_in_prediction_and_gold(whole: int, numerator: int, denominator: int, slash: str) -> None:
    value = whole + Fraction(numerator, denominator)
    for text in (f"{whole} {numerator}{slash}{denominator}", f"{value.numerator}{slash}{value.denominator}"):
        assert Fraction(canonical_number(text)) == value
        assert answers_equal(extract_answer(f"{PROMPT} {text}.", PROMPT), f"{value.numerator}/{value.denominator}")


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
