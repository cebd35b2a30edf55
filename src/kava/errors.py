"""The one exception a user is meant to see: a sentence that names the place and the cure.

`kava.cli` catches it, prints it on one line to standard error and exits with code 2. Anything else that escapes is a bug.
"""

import difflib
from collections.abc import Iterable

EXIT_USER_ERROR = 2


class UserError(Exception):
    """Something the user can mend: the message says what, where and how."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint such as ``; did you mean 'alpha2_kv'?``, or the list of valid names when none is close."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; valid names: {', '.join(names)}"
