"""Numeric answers: the only module that finds, parses, compares and formats numbers in text (method.md, section 9).

    extract_answer("He has $1,234.50 left. The answer is: $18.", "The answer is:")  ->  "18"
    answers_equal("18.0", "18")  ->  True

What counts as a number: digits, alone or in groups (``1,234``, ``1,23,456``, ``12 000``; ``1,2`` is two numbers), an optional
fraction part, an optional exponent of at most three digits (a comma before it is a decimal comma: ``1,8e1``), an optional sign;
or a fraction of whole numbers: ``3/4``, ``2 1/2``, ``\\frac{3}{4}``, ``½``, ``1⁄2`` with the fraction slash. Digits may be of any script.
A minus sign right after a word, a digit or a closing bracket is an operator or a hyphen, not part of the number: ``16-3`` ends in 3. A
space may follow a minus sign only at the beginning of the text or after ``=``, ``:`` or ``(``. Currency signs, ``%`` and a trailing dot
are dropped; ``5%`` is 5.
Values are exact: nothing is rounded, so 0.1+0.2 as a float stays 0.30000000000000004 and differs from 0.3.
"""

import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

# Every first digit, and numbers with several digits: the leading tokens that all share are the fixed text (`SequenceBuilder`). Negative
# numbers are left out: many tokenizers merge the space with the sign, so a space could then never be part of the fixed text.
NUMBERS = (*"0123456789", "42", "365", "1000", "2.5")

_SPACE = "[ \u00a0\u2009\u202f]"
# "180 180" is one number given twice, not one number with six digits.
_SPACED = rf"(?!(?P<said>[0-9]{{3}}){_SPACE}(?P=said)(?![0-9]))[1-9][0-9]{{0,2}}(?:{_SPACE}[0-9]{{3}})+"
_WHOLE = rf"(?:(?:[0-9]{{1,3}}(?:,[0-9]{{3}})+|[0-9]{{1,2}}(?:,[0-9]{{2}})+,[0-9]{{3}}|{_SPACED})(?![0-9])|[0-9]+)"
_FRACTION = rf"(?<![0-9/])(?:[0-9]{{1,15}}{_SPACE})?[0-9]{{1,15}}/[0-9]{{1,15}}(?![0-9/])"
_DECIMAL = rf"(?:{_WHOLE}(?:\.[0-9]+|,[0-9]+(?=[eE][+-]?[0-9]))?|(?<![\w.])\.[0-9]+)(?:[eE][+-]?[0-9]{{1,3}}(?![0-9]))?"
_CURRENCY = "[$€£¥₹]"
_AMOUNT = rf"(?:{_CURRENCY}\s?)?(?P<number>(?:(?<=[$€£¥₹])-)?(?:{_FRACTION}|{_DECIMAL}))"
_NUMBER = re.compile(rf"(?:(?<![\w.)\]])(?P<sign>[-+])(?=[0-9.]|{_CURRENCY}(?!-)))?{_AMOUNT}")
_WHOLE_TEXT = re.compile(rf"(?P<sign>[-+]?)\s?{_AMOUNT}\s?%?\.?")
_SIGN_APART = re.compile(r"(?:^|[=:(])[^\S\n]*-[^\S\n]+$")
_LATEX_FRACTION = re.compile(r"(?P<whole>[0-9]?)\\[dt]?frac\s*\{\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}")
_LATEX = (("\\$", "$"), ("\\%", "%"), ("{,}", ","), ("\\,", " "), ("\\!", ""))
# Fractions of one character; ⅟ is "1/" alone, and its denominator follows.
_VULGAR = "¼-¾⅐-⅞↉"
# Where a space keeps the digits of such a fraction apart from those around it: 2½ is 2 1/2.
_BESIDE_VULGAR_FRACTION = re.compile(rf"(?<=[\d{_VULGAR}])(?=[{_VULGAR}⅟])|(?<=[{_VULGAR}])(?=\d)")
# ¹⁄₂, and 2¹⁄₂ with its whole number.
_RAISED_FRACTION = re.compile(r"(?P<whole>\d?)([⁰¹²³⁴-⁹]+[⁄/][₀-₉]+)")
# Decimal and thousands separators of Arabic, fraction and division slash.
_MARKS = {"٫": ".", "٬": ",", "⁄": "/", "∕": "/"}
_MINUS = dict.fromkeys(map(ord, "−‐‑‒–﹣"), "-")


def extract_answer(text: str, answer_prompt: str, *, after_prompt: bool = False) -> str | None:
    """Return the first number after the last answer prompt, else the last number of the whole text, else None.

    The search for the prompt ignores letter case and white space ("the answer is : 7"). The number is returned without grouping
    separators, currency sign, ``%`` and trailing dot, otherwise as written ("18.0" stays "18.0").

    Args:
        text: generated text.
        answer_prompt: text before the number.
        after_prompt: the prompt was part of the model's input and `text` follows it, so the answer is the first number.
    """
    return find_answer(_numbers, _plain(text), _plain(answer_prompt), after_prompt)


def find_answer(find: Callable[[str], list[str]], text: str, answer_prompt: str, after_prompt: bool) -> str | None:
    """Do what `extract_answer` does for answers of any type; `find` returns those in a text, in order."""
    pieces = re.findall(r"\w+|[^\w\s]", answer_prompt)
    prompts = list(re.finditer(r"\s*".join(map(re.escape, pieces)), text, re.IGNORECASE)) if pieces else []
    behind = text if after_prompt else text[prompts[-1].end() :] if prompts else ""
    found = find(behind)
    if found or after_prompt:
        return found[0] if found else None
    return next(reversed(find(text)), None)


def answers_equal(a: str | None, b: str) -> bool:
    """Return whether both texts are numbers with the same exact value: 18, 18.0, $18 and 1.8e1 agree, and so do 1/3 and 2/6."""
    left, right = None if a is None else _exact(a), _exact(b)
    if left is None or right is None:
        return False
    if isinstance(left, Decimal) and isinstance(right, Decimal):
        return left == right
    return Fraction(left) == Fraction(right)


def answers_close(a: str | None, b: str, tolerance: float = 0.001) -> bool:
    """Return whether both texts are numbers that differ by less than `tolerance` (0.001 is from GSM8K-Hard's authors, PAL repository)."""
    left, right = None if a is None else _exact(a), _exact(b)
    return left is not None and right is not None and abs(Fraction(left) - Fraction(right)) < Fraction(str(tolerance))


def canonical_number(value: str | int | float | Decimal) -> str:
    """Format a number without exponent, commas, unnecessary zeros or a sign on zero: -9867630.0 -> ``-9867630``, "1/2" -> ``0.5``.

    A float is written in its shortest exact representation (0.30000000000000004), a fraction without an exact decimal form in
    lowest terms (``1/3``).

    Raises:
        ValueError: `value` is not a finite number.
    """
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a number")
    number = _exact(repr(value) if isinstance(value, float) else str(value))
    if isinstance(number, Fraction):
        terminating = _terminating(number)
        number = number if terminating is None else terminating
    if number is None:
        raise ValueError(f"{value!r} is not a number")
    if isinstance(number, Fraction):
        return f"{number.numerator}/{number.denominator}"
    digits = format(number, "f")
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if number == 0 else digits


def _plain(text: str) -> str:
    """Convert digits, signs and fractions of any script and of LaTeX to ASCII."""
    if not text.isascii():
        text = _RAISED_FRACTION.sub(_lowered, text.translate(_MINUS))
        text = _BESIDE_VULGAR_FRACTION.sub(" ", text)
        text = "".join(char if char.isascii() else _plain_character(char) for char in text)
    if "\\" in text or "{" in text:
        text = _LATEX_FRACTION.sub(lambda found: f"{found['whole']}{' ' if found['whole'] else ''}{found[2]}/{found[3]}", text)
        for written, plain in _LATEX:
            text = text.replace(written, plain)
    return text


def _lowered(found: re.Match[str]) -> str:
    return f"{found['whole']}{' ' if found['whole'] else ''}{unicodedata.normalize('NFKC', found[2])}"


def _plain_character(char: str) -> str:
    if char.isdecimal():
        return str(unicodedata.digit(char))
    if char in _MARKS:
        return _MARKS[char]
    if "\uff00" <= char <= "\uffef" or unicodedata.decomposition(char).startswith("<fraction>"):
        return unicodedata.normalize("NFKC", char).replace("⁄", "/")
    return char


def _numbers(text: str) -> list[str]:
    return [_signed(found) for found in _NUMBER.finditer(text)]


def _signed(found: re.Match[str]) -> str:
    """Return the matched number, with a minus sign that is separated from it by white space."""
    number = _clean(found)
    apart = found["sign"] is None and not number.startswith("-") and _SIGN_APART.search(found.string[: found.start()])
    return f"-{number}" if apart else number


def _clean(found: re.Match[str]) -> str:
    sign, number = found["sign"] or "", found["number"]
    if "," in number and not re.search(r",[0-9]{3}(?![0-9])", number):
        number = number.replace(",", ".")
    number = number.replace(",", "")
    whole, space, fraction = re.sub(_SPACE, " ", number).partition(" ")
    if space and "/" in fraction:
        numerator, denominator = map(int, fraction.split("/"))
        minus, whole = ("-", whole[1:]) if whole.startswith("-") else ("", whole)
        number = f"{minus}{int(whole) * denominator + numerator}/{denominator}"
    return ("-" if sign == "-" else "") + re.sub(_SPACE, "", number)


def _exact(text: str) -> Decimal | Fraction | None:
    """Return a Decimal for a decimal number, a Fraction for ``a/b``; None for anything else, two signs or a zero denominator."""
    found = _WHOLE_TEXT.fullmatch(_plain(text).strip())
    if found is None or (found["sign"] and found["number"].startswith("-")):
        return None
    number = _clean(found)
    if "/" not in number:
        return Decimal(number)
    numerator, denominator = map(int, number.split("/"))
    return Fraction(numerator, denominator) if denominator else None


def _terminating(value: Fraction) -> Decimal | None:
    """Return a fraction as an exact decimal; None if its denominator in lowest terms has a prime factor other than 2 and 5."""
    places = value.denominator.bit_length()
    scaled, rest = divmod(value.numerator * 10**places, value.denominator)
    return None if rest else Decimal(f"{scaled}e-{places}")
