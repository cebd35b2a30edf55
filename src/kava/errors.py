"""The one exception a user is meant to see: a sentence that names the place and the cure.

`kava.cli` catches it, prints it on one line to standard error and exits with code 2. Anything else that escapes is a bug.
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
    """Something the user can fix: the message says what, where and how."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint such as ``; did you mean 'alpha2_kv'?``, or the list of valid names when none is close."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; valid names: {', '.join(names)}"


def at_least(least: int | float, **values: int | float | None) -> None:
    """Refuse a value below `least`, or one that is no number; None is an option that was not given.

    Raises:
        UserError: names the option.
    """
    for name, value in values.items():
        if value is not None and not value >= least:
            raise UserError(f"{name} is {value}; it must be at least {least}")


def one_line(text: object, limit: int = LONGEST_LINE) -> str:
    """A message as one line that any terminal shows: no line ends, no control characters, not without end."""
    line = " ".join(str(text).splitlines())
    if len(line) > limit:
        line = f"{line[: limit // 2]} ... {line[-limit // 3 :]}"
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in line)


def reason_of(error: object) -> str:
    """What another library's error says, as one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


def blame_of(error: OSError) -> str | None:
    """What the disk or the operating system refused, and the cure; None where it is no affair of the user's."""
    cure = _CURES.get(error.errno or 0)
    if cure is None:
        return None
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror}{where}; {cure}"


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether the device or the machine had no memory left: torch has a class of error for GPUs, and for the rest only a text.

    An error on the way out, such as that of a CUDA graph whose capture broke off, counts by the one that it came of.
    """
    if error is None:
        return False
    signs = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    own = isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs))
    return own or ran_out_of_memory(error.__context__)


@contextmanager
def naming_out_of_memory(what: str, cure: str) -> Iterator[None]:
    """Say in one sentence what ran out of memory inside the block, and what takes less.

    Raises:
        UserError: it did.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        text = str(error).partition("DefaultCPUAllocator: ")[2] or str(error) or type(error).__name__
        reason = text.partition("\n")[0].partition(". ")[0]
        raise UserError(f"{what} ran out of memory ({reason}); {cure}") from None
