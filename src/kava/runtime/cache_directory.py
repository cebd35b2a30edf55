"""The cache: converted and pretrained base models, tokenised data."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kava.errors import UserError
from kava.runtime.atomic import verify, write_atomic
from kava.runtime.lock import LOCK_FILE, locked

OTHER_CACHE = "set KAVA_CACHE to a directory that can be written to and has room"


def cache_dir() -> Path:
    """Return $KAVA_CACHE, or ~/.cache/kava.

    Raises:
        UserError: this user has no home directory.
    """
    try:
        return Path(os.environ.get("KAVA_CACHE") or Path.home() / ".cache" / "kava")
    except RuntimeError:
        raise UserError(f"there is no home directory to keep a cache in; {OTHER_CACHE}") from None


@contextmanager
def ensured(entry: Path, what: str, make: Callable[[Path], None]) -> Iterator[bool]:
    """Make sure that a cache entry is complete; if not, `make` fills an empty directory. Yields whether it was made now.

    Other processes that need the same entry wait until the block is left. A read-only cache is sufficient if it contains the entry.

    Raises:
        UserError: the entry has to be made, and the cache cannot be written to.
    """
    work = entry.with_name(f".{entry.name}")
    try:
        work.mkdir(parents=True, exist_ok=True)
        (work / LOCK_FILE).touch()
    except OSError as error:
        if verify(entry) is None:
            yield False
            return
        raise UserError(f"{what} {entry} cannot be put into the cache ({error.strerror}); {OTHER_CACHE}") from None
    with locked(work, wait=True):
        problem = verify(entry) if entry.exists() else ""
        if problem:
            print(f"kava: {what} {entry} is damaged ({problem}); making it again", file=sys.stderr, flush=True)
        if problem is not None:
            write_atomic(entry, make, what, OTHER_CACHE)
        yield problem is not None
