"""Errors that users see: one sentence that says what is wrong, where, and how to fix it.

`kava.cli` catches `UserError`, prints it on one line to standard error and exits with code 2. Any other exception that escapes is a
bug, except disk and operating-system errors with a known fix (`describe_os_error`), which it reports in the same way.
"""

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

EXIT_USER_ERROR = 2
LONGEST_LINE = 2_000
_CURES = {
    errno.ENOSPC: "free some space or choose another output directory",
    errno.EDQUOT: "free some of your quota or choose another output directory",
    errno.EROFS: "choose an output directory that can be written to",
    errno.EACCES: "choose a place that you have access to",
    errno.EPERM: "choose a place that you have access to",
    errno.EIO: "the disk or its connection fails; choose another one",
    errno.ENOMEM: "end what else takes memory, or ask for less at once",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    **dict.fromkeys((errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR), "give another path"),
}


class UserError(Exception):
    """An error that the user can fix; the message says what is wrong, where, and how to fix it."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint such as ``; did you mean 'alpha2_kv'?``, or the list of valid names when none is close."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; valid names: {', '.join(names)}"


def at_least(least: int | float, **values: int | float | None) -> None:
    """Check that every value is a number of at least `least`; None, an option that was not given, is accepted.

    Raises:
        UserError: a value is smaller or NaN; the message names the option.
    """
    for name, value in values.items():
        if value is not None and not value >= least:
            raise UserError(f"{name} is {value}; it must be at least {least}")


def only_options(function: str, given: Iterable[str], valid: Iterable[str]) -> None:
    """Check the names of options that a function passes on.

    Raises:
        UserError: a name is not valid; the message names the function and the nearest valid name.
    """
    names = set(valid)
    unknown = next((name for name in given if name not in names), None)
    if unknown is not None:
        raise UserError(f"{function} has no option '{unknown}'{nearest(unknown, names)}")


def one_line(text: object, limit: int = LONGEST_LINE) -> str:
    """Return a message as one line that any terminal can show: no line breaks, no control characters, limited in length."""
    line = " ".join(str(text).splitlines())
    if len(line) > limit:
        line = f"{line[: limit // 2]} ... {line[-limit // 3 :]}"
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in line)


def reason_of(error: object) -> str:
    """Return the message of another library's error as one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


def describe_os_error(error: OSError) -> str | None:
    """Return what the disk or the operating system refused and how to fix it; None if the user cannot fix it."""
    cure = _CURES.get(error.errno or 0)
    if cure is None:
        return None
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror}{where}; {cure}"


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error means that the device or the machine ran out of memory.

    torch has an exception class for GPUs only; elsewhere the message is the only sign. A follow-up error, such as that of an aborted
    CUDA graph capture, is judged by the error that caused it.
    """
    if error is None:
        return False
    signs = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    own = isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs))
    return own or ran_out_of_memory(error.__context__)


@contextmanager
def report_out_of_memory(what: str, cure: str) -> Iterator[None]:
    """Turn an out-of-memory error inside the block into one sentence that says what failed and how to use less memory.

    Raises:
        UserError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        text = str(error).partition("DefaultCPUAllocator: ")[2] or str(error) or type(error).__name__
        reason = text.partition("\n")[0].partition(". ")[0]
        raise UserError(f"{what} ran out of memory ({reason}); {cure}") from None
