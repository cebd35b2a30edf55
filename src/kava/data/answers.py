"""Numbers in text: the one place that finds, reads, compares and writes an answer (method.md, section 9).

    extract_answer("He has $1,234.50 left. The answer is: $18.", "The answer is:")  ->  "18"
    answers_equal("18.0", "18")  ->  True

What counts as a number: digits with or without thousands commas (groups of exactly three, so ``1,234`` is one number and
``1,2`` two), an optional fraction part, an optional exponent of at most three digits, an optional sign, or a simple fraction
``3/4`` of two whole numbers. A minus sign right behind a word, a digit or a closing bracket is an operator or a hyphen, not
part of the number: ``16-3`` ends in 3. Currency signs, ``%`` and a trailing dot are dropped; ``5%`` is 5.
Values are exact: nothing is rounded, so 0.1+0.2 as a float stays 0.30000000000000004 and differs from 0.3.
"""

import re
from decimal import Decimal
from fractions import Fraction

_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_UNSIGNED = rf"(?:(?<![0-9/])[0-9]{{1,15}}/[0-9]{{1,15}}(?![0-9/])|(?:{_WHOLE}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]{{1,3}}(?![0-9]))?)"
_CURRENCY = "[$€£¥₹]"
_AMOUNT = rf"(?:{_CURRENCY}\s?)?((?:(?<=[$€£¥₹])[-−])?{_UNSIGNED})"
_NUMBER = re.compile(rf"(?:(?<![\w.)\]])([-+−])(?=[0-9.]|{_CURRENCY}))?{_AMOUNT}")
_WHOLE_TEXT = re.compile(rf"([-+−]?){_AMOUNT}\s?%?\.?")


def extract_answer(text: str, answer_prompt: str) -> str | None:
    """Return the first number after the last answer prompt, else the last number of the whole text, else None.

    The prompt is found whatever its letter case and white space ("the answer is : 7"). The number comes back without commas, currency
    sign, ``%`` and trailing dot, otherwise as written ("18.0" stays "18.0").
    """
    pieces = re.findall(r"\w+|[^\w\s]", answer_prompt)
    prompts = list(re.finditer(r"\s*".join(map(re.escape, pieces)), text, re.IGNORECASE)) if pieces else []
    if prompts and (found := _NUMBER.search(text, prompts[-1].end())):
        return _clean(found)
    numbers = list(_NUMBER.finditer(text))
    return _clean(numbers[-1]) if numbers else None


def parse_number(text: str) -> Decimal | None:
    """Read a text that is one number; None when it is none or has no exact decimal form (``1/3``)."""
    value = _exact(text)
    if value is None or isinstance(value, Decimal):
        return value
    return _terminating(value)


def answers_equal(a: str | None, b: str) -> bool:
    """Whether both texts are numbers of the same exact value: 18, 18.0, $18 and 1.8e1 agree, and so do 1/3 and 2/6."""
    left, right = None if a is None else _exact(a), _exact(b)
    if left is None or right is None:
        return False
    if isinstance(left, Decimal) and isinstance(right, Decimal):
        return left == right
    return Fraction(left) == Fraction(right)


def canonical_number(value: str | int | float | Decimal) -> str:
    """Write a number without exponent, commas, superfluous zeros or sign of zero: -9867630.0 -> ``-9867630``, "1/2" -> ``0.5``.

    A float is written by its exact shortest representation (0.30000000000000004), a fraction without a decimal form in lowest
    terms (``1/3``).

    Raises:
        ValueError: `value` is no finite number.
    """
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a number")
    number = _exact(repr(value) if isinstance(value, float) else str(value))
    if isinstance(number, Fraction):
        number = _terminating(number) or number
    if number is None:
        raise ValueError(f"{value!r} is not a number")
    if isinstance(number, Fraction):
        return f"{number.numerator}/{number.denominator}"
    digits = format(number, "f")
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if number == 0 else digits


def _clean(found: re.Match[str]) -> str:
    sign, number = found.groups(default="")
    return _minus(sign) + number.replace(",", "").replace("−", "-")


def _minus(sign: str) -> str:
    return "-" if sign in ("-", "−") else ""


def _exact(text: str) -> Decimal | Fraction | None:
    """Decimal for a decimal number, Fraction for ``a/b``; None for anything else, for two signs and for a zero denominator."""
    found = _WHOLE_TEXT.fullmatch(text.strip())
    if found is None:
        return None
    sign, number = found[1], found[2].replace(",", "").replace("−", "-")
    if sign and number.startswith("-"):
        return None
    number = _minus(sign) + number
    if "/" not in number:
        return Decimal(number)
    numerator, denominator = map(int, number.split("/"))
    return Fraction(numerator, denominator) if denominator else None


def _terminating(value: Fraction) -> Decimal | None:
    """The exact decimal of a fraction whose lowest denominator has no prime factor but 2 and 5."""
    places = value.denominator.bit_length()
    scaled, rest = divmod(value.numerator * 10**places, value.denominator)
    return None if rest else Decimal(f"{scaled}e-{places}")
