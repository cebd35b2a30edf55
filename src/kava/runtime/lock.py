"""One run per directory: a lock that the operating system releases when its last holder exits for any reason.

A runner passes its lock on to its children (`pass_fds`): a child that outlives a killed runner still holds the lock, and a child
that locks the same directory again gets it.
"""

import contextlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from kava.errors import UserError

LOCK_FILE = ".lock"
LONGEST_COMMAND = 60
# Descriptors that hold locks: a forked data loader must not keep them when this process exits.
_held: set[int] = set()


def _forget() -> None:
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def locked(directory: Path, wait: bool = False) -> Iterator[tuple[int, ...]]:
    """Hold the directory's lock; yields the file descriptors that children must inherit (none on systems without such locks).

    With `wait`, the call waits until another process releases the lock.

    Raises:
        UserError: another process holds the lock, and `wait` is false.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield ()
        return
    with open(directory / LOCK_FILE, "a", encoding="utf-8") as file:
        descriptor = file.fileno()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            given = _given_by_parent(descriptor)
            if given is None:
                who = holders(directory / LOCK_FILE) or "it does not say which"
                raise UserError(f"{directory} is in use by another run ({who}); wait for it or stop it") from None
            descriptor = given
        except OSError:  # a file system without locks
            yield ()
            return
        _sign(file)
        _held.add(descriptor)
        try:
            yield (descriptor,)
        finally:
            _held.discard(descriptor)


def holders(lock: Path) -> str:
    """Return who holds a lock: the processes of this machine that do, else what the last holder wrote into the file."""
    try:
        inode = f":{lock.stat().st_ino} "
    except OSError:
        return ""
    found = sorted(int(process.name) for process in Path("/proc").glob("[0-9]*") if _holds(process, inode))
    if found:
        return " and ".join(f"process {number}{_command(number)}" for number in found)
    with contextlib.suppress(OSError):
        return lock.read_text(encoding="utf-8", errors="replace").strip()
    return ""


def _holds(process: Path, inode: str) -> bool:
    """Return whether one of a process's descriptors holds a lock on that file, according to /proc on Linux."""
    with contextlib.suppress(OSError):
        for entry in (process / "fdinfo").iterdir():
            with contextlib.suppress(OSError):
                if any(line.startswith("lock:") and inode in line for line in entry.read_text().splitlines()):
                    return True
    return False


def _command(number: int) -> str:
    try:
        words = Path(f"/proc/{number}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return ""
    line = " ".join([Path(words[0]).name, *words[1:]]).strip()
    return f": {line[:LONGEST_COMMAND]}" + (" ..." if len(line) > LONGEST_COMMAND else "")


def _given_by_parent(own: int) -> int | None:
    """Return the parent's descriptor of the same lock, if this process inherited it."""
    import fcntl

    mine = os.fstat(own)
    for name in os.listdir("/dev/fd") if os.path.isdir("/dev/fd") else []:
        descriptor = int(name)
        with contextlib.suppress(OSError):
            # Descriptors that this process opened itself are not inheritable, and only a descriptor that holds the lock can lock again.
            if descriptor > 2 and os.get_inheritable(descriptor) and os.path.samestat(os.fstat(descriptor), mine):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
    return None


def _sign(file: IO[str]) -> None:
    """Write who holds the lock into its file, for other machines on a shared disk; a full disk is ignored."""
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
