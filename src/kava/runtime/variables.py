"""Settings of a machine, not of a run: numbers in environment variables (docs/QUICK_REFERENCE.md lists them)."""

import os

from kava.errors import UserError


def number(name: str, default: float, unit: str) -> float:
    """The number in an environment variable; the default where it is not set or empty.

    Raises:
        UserError: it holds something else than a number that is not negative.
    """
    text = os.environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise UserError(f"{name} is '{text}'; set it to a number of {unit}, or leave it out for {default:g}")
    return value
