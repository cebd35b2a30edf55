"""Cache of tokenised training data: written once, and memory-mapped by every run and process that needs it.

The name of an entry is a hash of everything that determines the tokens: rows, rules, tokenizer, wording, and code. An entry is
written to a temporary directory and renamed when it is complete; other processes wait for its lock. A damaged entry is rebuilt.
"""

import contextlib
import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kava.data
from kava.data.encoded_rows import EncodedRows, write_rows
from kava.data.example import Example
from kava.data.sequences import SequenceBuilder
from kava.data.sources.splits import Splits
from kava.errors import UserError
from kava.runtime.atomic import checksum, discard
from kava.runtime.cache_directory import cache_dir, ensured
from kava.runtime.lock import locked
from kava.runtime.variables import number

# Maximum size of all entries together in GiB; the entry in use is kept, whatever its size.
LIMIT_VARIABLE, DEFAULT_LIMIT = "KAVA_CACHE_GIB", 20.0
ROWS, ABOUT = "train.arrow", "about.json"


@dataclass(frozen=True)
class Tokenised:
    """Tokenised training rows, with the validation examples and the metadata.

    Attributes:
        rows: all usable training rows, in order.
        validation: the validation examples, as text.
        about: fingerprints, counts of rows left out, and the note about them.
    """

    rows: EncodedRows
    validation: list[Example]
    about: dict[str, Any]


def tokenise(splits: Splits, builder: SequenceBuilder) -> Tokenised:
    """Return the cache entry for this data and this tokenizer; it is created if there is no complete one.

    Raises:
        UserError: as in `Splits.read`; also if the cache cannot be written to or no training row is left.
    """
    limit = number(LIMIT_VARIABLE, DEFAULT_LIMIT, "GiB")
    directory = cache_dir() / "tokens" / entry_name(splits, builder)
    with ensured(directory, "tokenised data", lambda staging: _write(staging, splits, builder)) as made:
        if made:
            _prune(directory, limit)
        return _open(directory)


def entry_name(splits: Splits, builder: SequenceBuilder) -> str:
    """Return a hash of everything that determines the tokens."""
    code = [checksum(path) for path in sorted(Path(kava.data.__path__[0]).rglob("*.py"))]
    libraries = [version(name) for name in ("tokenizers", "transformers")]
    content = [code, libraries, splits.content(), _tokenizer_content(builder.tokenizer), builder.wording]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _tokenizer_content(tokenizer: Any) -> list[str]:
    ids = [type(tokenizer).__name__, str(tokenizer.eos_token_id), str(tokenizer.bos_token_id)]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return [*ids, hashlib.sha256(backend.to_str().encode()).hexdigest()]
    # A tokenizer written in Python has no backend: use the files that it saves.
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        return [*ids, *(checksum(path) for path in sorted(Path(directory).rglob("*")) if path.is_file())]


def _write(directory: Path, splits: Splits, builder: SequenceBuilder) -> None:
    train, validation = splits.read()
    if not write_rows(directory / ROWS, builder.encode_each(train)):
        raise UserError(f"no training row of '{splits.source}' is left beside the validation questions; give more, or different, rows")
    about = {
        "fingerprint": train.fingerprint,
        "validation_fingerprint": validation.fingerprint,
        "bad_rows": train.tally.bad,
        "validation_bad_rows": validation.bad_rows,
        "without_trace": train.tally.untraced,
        "note": train.note,
    }
    content = {"about": about, "validation": [asdict(example) for example in validation.examples]}
    (directory / ABOUT).write_text(json.dumps(content), encoding="utf-8")


def _open(directory: Path) -> Tokenised:
    content = json.loads((directory / ABOUT).read_text(encoding="utf-8"))
    validation = [Example(**{**fields, "steps": tuple(fields["steps"])}) for fields in content["validation"]]
    return Tokenised(EncodedRows(directory / ROWS), validation, content["about"])


def _prune(newest: Path, limit: float) -> None:
    """Remove the least recently used entries until the rest fit; never remove the newest entry or one that is being opened."""
    entries = []
    for rows in newest.parent.glob(f"[!.]*/{ROWS}"):
        if rows.parent != newest:
            with contextlib.suppress(OSError):  # another process has just removed it
                entries.append((rows.stat().st_mtime, _size(rows.parent), rows.parent))
    room = limit * 2**30 - _size(newest)
    for _, size, entry in sorted(entries, reverse=True):
        room -= size
        if room < 0:
            try:
                with locked(entry.with_name(f".{entry.name}")):
                    discard(entry)
            except (OSError, UserError):
                continue


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
