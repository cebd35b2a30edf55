"""Atomic directories: written under a temporary name, flushed to disk, listed with sizes and checksums, renamed.

write_atomic(directory, lambda staging: (staging / "weights").write_bytes(...))
problem = verify(directory)
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from kava.errors import UserError
from kava.runtime.lock import LOCK_FILE, locked

FORMAT = "kava.checkpoint/1"
MANIFEST = "manifest.json"
# Belongs to a checkpoint but has no checksum: the model card is rewritten when there are new results.
REWRITABLE = "README.md"
CHECKPOINT, ANOTHER_PLACE = "checkpoint", "choose another --output_dir"
# Windows cannot open directories, so they are not flushed there.
FOLDERS_ARE_FILES = os.name != "nt"
# safetensors and tokenizers (Rust) and torch.save (C++, two ways) have their own error types for a full disk.
_DISK_ERRORS = ("(os error ", "inline_container", "iostream error")
NO_ROOM = 1 << 20
# Temporary names of `write_atomic`, the training loop and `write_text` in kava.results.
_HALF_DIRECTORY = re.compile(r"\.writing|\.(checkpoint-\d+|best_checkpoint|bad_batch-[\w-]+)\.(writing|old)")
_HALF_FILE = re.compile(r"\.(\w+\.(json|jsonl|yaml|log)|results_.*)\.\d+\.tmp")


def write_atomic(directory: Path, write: Callable[[Path], None], what: str = CHECKPOINT, cure: str = ANOTHER_PLACE) -> None:
    """Create a directory atomically from what `write` puts into an empty staging directory.

    Raises:
        UserError: the disk is full or the place is read-only.
    """
    directory = directory.absolute()
    staging = directory.with_name(f".{directory.name}.writing")
    with report_disk_errors(directory, what, cure):
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
def report_disk_errors(directory: Path, what: str = CHECKPOINT, cure: str = ANOTHER_PLACE) -> Iterator[None]:
    """Turn a failed write inside the block into one line for the user, whichever library raised it.

    Args:
        directory: directory that is written to.
        what: kind of the directory, for the message.
        cure: alternative to freeing disk space, for the message.

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


def refuse_foreign(directory: Path, cure: str = ANOTHER_PLACE) -> None:
    """Refuse a directory with files of others, which a checkpoint there would replace.

    Raises:
        UserError: it is a file, or a directory that is not empty and has no manifest of ours.
    """
    if directory.is_dir() and not is_sealed(directory) and any(directory.iterdir()):
        raise UserError(f"{directory} holds other files, which a checkpoint there would replace; {cure}")
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; {cure}")


def is_sealed(directory: Path) -> bool:
    """Return whether a manifest shows that we wrote this directory, complete or damaged."""
    return _listed(directory) is not None


def _listed(directory: Path) -> list[str] | None:
    """Return the files listed in a directory's manifest; None if it has no manifest of ours."""
    try:
        content = json.loads((directory / MANIFEST).read_text())
        return [str(name) for name in (*content["files"], REWRITABLE)] if content["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def seal(directory: Path) -> None:
    """Write the manifest of a finished directory, set file permissions by the user's umask, and flush everything to disk."""
    files = {
        path.relative_to(directory).as_posix(): _entry(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, REWRITABLE)
    }
    (directory / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}, indent=2) + "\n")
    follow_umask(directory)
    for path in [*(p for p in directory.rglob("*") if p.is_file()), directory]:
        _flush(path)


def follow_umask(directory: Path) -> None:
    """Set the permissions of all files in a directory by the user's umask: safetensors makes files readable by the owner only."""
    probe = directory / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in directory.rglob("*"):
        if path.is_file() and path.stat().st_mode & 0o777 != mode:
            with contextlib.suppress(OSError):  # a file system without permissions
                path.chmod(mode)


def publish(staging: Path, directory: Path) -> None:
    """Rename a sealed directory to its final name; files in the replaced directory that its manifest does not list are kept."""
    old = _set_aside(directory)
    staging.rename(directory)
    _flush(directory.parent)
    for path in _not_ours(old):
        kept = directory / path.relative_to(old)
        if not kept.exists():
            with contextlib.suppress(OSError):
                kept.parent.mkdir(parents=True, exist_ok=True)
                path.rename(kept)
    shutil.rmtree(old, ignore_errors=True)


def discard(directory: Path) -> None:
    """Delete a checkpoint so that a partial one is never visible under its name; files that its manifest does not list are kept."""
    old = _set_aside(directory)
    for path in _not_ours(old):
        with contextlib.suppress(OSError):
            (directory / path.relative_to(old)).parent.mkdir(parents=True, exist_ok=True)
            path.rename(directory / path.relative_to(old))
    shutil.rmtree(old, ignore_errors=True)


def _not_ours(sealed: Path) -> list[Path]:
    """Return the files in a directory that its manifest does not list."""
    own = {sealed / name for name in _listed(sealed) or ()}
    return [path for path in sealed.rglob("*") if path.is_file() and path.name != MANIFEST and path not in own]


def _set_aside(directory: Path) -> Path:
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    return old


def tidy(run: Path) -> None:
    """Remove partly written or partly deleted files and directories of a killed run, which are recognised by name."""
    for rest in run.iterdir():
        if _HALF_DIRECTORY.fullmatch(rest.name):
            shutil.rmtree(rest, ignore_errors=True)
        elif _HALF_FILE.fullmatch(rest.name):
            rest.unlink(missing_ok=True)


def recover(directory: Path) -> None:
    """Roll back a `publish` that was interrupted between its two renames. No other process may be writing the directory."""
    old = directory.with_name(f".{directory.name}.old")
    if old.exists() and not directory.exists():
        old.rename(directory)


def recover_unused(directory: Path) -> None:
    """As `recover`, before reading: does nothing while a run holds the lock of the directory above, or where nothing may be written."""
    if directory.exists():
        return
    above = directory.absolute().parent
    alone: AbstractContextManager[object] = locked(above) if (above / LOCK_FILE).exists() else contextlib.nullcontext()
    with contextlib.suppress(UserError, OSError), alone:
        recover(directory)


def verify(directory: str | Path) -> str | None:
    """Return what is wrong with a checkpoint (a missing, truncated or changed file), or None if it is complete.

    Raises:
        UserError: there is no permission to read it.
    """
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
    except PermissionError as error:
        raise not_readable(error.filename or directory) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def not_readable(path: str | Path) -> UserError:
    """Return the error for a file that this user has no permission to read."""
    return UserError(f"you have no permission to read {path}: ask its owner for it (chmod -R a+rX, on the directory)")


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": checksum(path)}


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, read block by block."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    folder = path.is_dir()
    if folder and not FOLDERS_ARE_FILES:
        return
    # Windows flushes only files that are open for writing.
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
