"""One process per run directory: a lock that also the children hold, so that an orphan of a killed parent still keeps others out."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kava.errors import UserError

LOCK_FILE = ".lock"


@contextmanager
def locked(directory: Path, wait: bool = False) -> Iterator[tuple[int, ...]]:
    """Hold the directory's lock; yields the file descriptors that children must inherit (none where there are no such locks).

    With `wait`, another process that holds it is waited for.

    Raises:
        UserError: another process works in this directory.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield ()
        return
    with open(directory / LOCK_FILE, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            owner = (directory / LOCK_FILE).read_text(encoding="utf-8").strip() or "unknown"
            raise UserError(f"{directory} is in use by another run (started by process {owner}); wait for it or stop it") from None
        except OSError:  # a file system without locks
            yield ()
            return
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield (file.fileno(),)
