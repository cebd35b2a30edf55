"""Directories that are whole or not there: written beside, flushed to disk, listed with sizes and checksums, renamed.

write_whole(directory, lambda staging: (staging / "weights").write_bytes(...))
problem = verify(directory)
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kava.errors import UserError

FORMAT = "kava.checkpoint/1"
MANIFEST = "manifest.json"
CHECKPOINT, ANOTHER_PLACE = "checkpoint", "choose another --output_dir"
# Windows opens no folder, and so has none to flush.
FOLDERS_ARE_FILES = os.name != "nt"
# safetensors and tokenizers (Rust) and torch.save (C++, two ways) have error types of their own for a disk that is full.
_DISK_ERRORS = ("(os error ", "inline_container", "iostream error")
NO_ROOM = 1 << 20


def write_whole(directory: Path, write: Callable[[Path], None], what: str = CHECKPOINT, cure: str = ANOTHER_PLACE) -> None:
    """Make a sealed directory out of what `write` puts into an empty one, all or nothing.

    Raises:
        UserError: the disk is full or the place is read-only.
    """
    staging = directory.with_name(f".{directory.name}.writing")
    with naming_disk_errors(directory, what, cure):
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            write(staging)
            seal(staging)
            publish(staging, directory)
        except Exception:
            shutil.rmtree(staging, ignore_errors=True)
            recover(directory)
            raise


@contextmanager
def naming_disk_errors(directory: Path, what: str = CHECKPOINT, cure: str = ANOTHER_PLACE) -> Iterator[None]:
    """Turn a failed write inside the block into one line for the user, whichever library met it.

    Args:
        directory: what is written to.
        what: its kind, for the message.
        cure: where else it could go, for the message.

    Raises:
        UserError: the disk is full or the place is read-only.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and not any(words in str(error) for words in _DISK_ERRORS):
            raise
        reason = _reason(error, directory)
        raise UserError(f"{what} {directory} could not be written ({reason}): free some space or {cure}") from error


def _reason(error: Exception, directory: Path) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # torch.save does not say why it could not write.
    place = next(parent for parent in directory.absolute().parents if parent.exists())
    return os.strerror(errno.ENOSPC) if shutil.disk_usage(place).free < NO_ROOM else str(error).splitlines()[0]


def seal(directory: Path) -> None:
    """Write the manifest of a finished directory and flush everything to disk."""
    files = {
        path.relative_to(directory).as_posix(): _entry(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    (directory / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}, indent=2) + "\n")
    for path in [*(p for p in directory.rglob("*") if p.is_file()), directory]:
        _flush(path)


def publish(staging: Path, directory: Path) -> None:
    """Give a sealed directory its final name."""
    old = _set_aside(directory)
    staging.rename(directory)
    _flush(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def discard(directory: Path) -> None:
    """Delete a checkpoint, in such a way that no half of it is ever seen under its name."""
    shutil.rmtree(_set_aside(directory), ignore_errors=True)


def _set_aside(directory: Path) -> Path:
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    return old


def tidy(run: Path) -> None:
    """Remove what a killed run left half written or half deleted."""
    for pattern in (".*.writing", ".writing", ".*.old"):
        for rest in run.glob(pattern):
            shutil.rmtree(rest, ignore_errors=True)
    for rest in run.glob(".*.tmp"):
        rest.unlink(missing_ok=True)


def recover(directory: Path) -> None:
    """Undo a `publish` that was cut off between its two renames: the older checkpoint gets its name back."""
    old = directory.with_name(f".{directory.name}.old")
    if old.exists() and not directory.exists():
        old.rename(directory)


def verify(directory: str | Path) -> str | None:
    """What is wrong with a checkpoint (a file that is missing, cut off or changed), or None if it is whole."""
    directory = Path(directory)
    try:
        files = json.loads((directory / MANIFEST).read_text())["files"]
        for name, expected in files.items():
            path = directory / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes in place of {expected['bytes']}"
            if checksum(path) != expected["sha256"]:
                return f"{name} does not match its checksum"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": checksum(path)}


def checksum(path: Path) -> str:
    """SHA-256 of a file, read block by block."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    folder = path.is_dir()
    if folder and not FOLDERS_ARE_FILES:
        return
    # Windows flushes only what is open for writing.
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
