"""Read results that will be shown, and check that a result belongs to the checkpoint next to it and its rows belong to the result.

found = read_verified(run / "results_gsm8k.yaml")
found.result.metrics.accuracy, [row.correct for row in found.needed_rows()]
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kava.errors import UserError
from kava.results.result import BEST_CHECKPOINT, CURE, Result, Row, read_result, read_rows, rows_path

_MANIFEST, _CARD, _ABOUT = "manifest.json", "README.md", "kava_config.json"
# Keys of kava_config.json other than the metadata that results hold as `provenance.training`.
MODEL_KEYS = ("format", "method", "base", "base_fingerprint", "config", "prompt_ids")


@dataclass(frozen=True)
class Verified:
    """A result that was read and checked, with its per-question rows; `rows` is None if their file does not exist."""

    path: Path
    result: Result
    rows: list[Row] | None

    def needed_rows(self) -> list[Row]:
        """Return the per-question rows.

        Raises:
            UserError: their file does not exist.
        """
        if self.rows is None:
            raise UserError(f"per-question file {rows_path(self.path)} does not exist; {CURE}")
        return self.rows


def checkpoint_hash(directory: str | Path) -> str | None:
    """Return the hash of a checkpoint's manifest, which lists the checksum of every file; None if there is no manifest.

    The model card is left out, because it may be rewritten with the results of the checkpoint.
    """
    content = _json(Path(directory) / _MANIFEST)
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict):
        return None
    listed = {name: entry for name, entry in files.items() if name != _CARD}
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()[:16]


def read_verified(path: str | Path, checkpoint: str | Path | None = None) -> Verified:
    """Read a result with its rows, and check that it was measured on `checkpoint` (default: the best one of its run), if that exists.

    If a per-question file exists, it must be the one that was written with the result.

    Raises:
        UserError: as in `read_result`; or the result was measured on another checkpoint, or its rows belong to another result.
    """
    result = read_result(path)
    checkpoint = Path(checkpoint or Path(path).parent / BEST_CHECKPOINT)
    if checkpoint.is_dir() and not _measured_on(result, checkpoint):
        at = f" ({result.checkpoint.path})" if result.checkpoint else ""
        raise UserError(f"result file {path} was measured on another checkpoint{at} than {checkpoint}; {CURE}")
    return Verified(Path(path), result, verified_rows(path, result) if rows_path(path).exists() else None)


def verified_result(path: str | Path, checkpoint: str | Path | None = None) -> Result:
    """Return the result alone, checked as `read_verified` checks it."""
    return read_verified(path, checkpoint).result


def verified_results(paths: list[Path], checkpoint: str | Path | None = None) -> tuple[list[Result], list[str]]:
    """Return the results that belong to their checkpoint and cover a full run on a full test set, and why the others are left out."""
    found, problems = [], []
    for path in paths:
        try:
            result = verified_result(path, checkpoint)
        except UserError as error:
            problems.append(str(error))
            continue
        if result.partial:
            problems.append(f"result file {path} is not a full evaluation ({result.partial})")
        else:
            found.append(result)
    return found, problems


def verified_rows(path: str | Path, result: Result) -> list[Row]:
    """Read the per-question rows of a result.

    Raises:
        UserError: the rows are missing, broken, or not those that were written with the result.
    """
    beside = rows_path(path)
    rows = read_rows(beside)
    if result.answers is not None:
        same = hashlib.sha256(beside.read_bytes()).hexdigest() == result.answers
    else:
        same = (len(rows), sum(row.correct for row in rows)) == (result.metrics.total, result.metrics.correct)
    if not same:
        raise UserError(f"per-question file {beside} is not the one that was written with {Path(path).name} (cut or changed); {CURE}")
    return rows


def _measured_on(result: Result, checkpoint: Path) -> bool:
    if result.checkpoint is not None:
        return result.checkpoint.manifest in (None, checkpoint_hash(checkpoint))
    # Earlier versions instead recorded the training metadata of the checkpoint, which includes the time to the second.
    content = _json(checkpoint / _ABOUT)
    said = {key: value for key, value in content.items() if key not in MODEL_KEYS} if isinstance(content, dict) else None
    return bool(said) and result.provenance.get("training") == said


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
