"""Read rows from JSON lists, JSON lines, plain text lines and parquet; the file type is detected from the first bytes."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kava.data.sources.formats import Row
from kava.errors import UserError
from kava.runtime.text import ENCODING

_SPACE = re.compile(r"[ \t\n\r]*")
# The first bytes of gzip, zip, zstd, xz and bzip2 files.
_COMPRESSED = (b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh")
# Rows of a parquet file that are held in memory at a time.
_BLOCK = 1000


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that does not consist of fields, with the reason."""

    reason: str


LocatedRow = tuple[str, Row | BadRow]


def read_rows(path: Path, *, keep_blank: bool = False) -> Iterator[LocatedRow]:
    """Yield ("line 17" or "row 17", row) for every row of a file; a text line becomes the field ``text``.

    Blank lines are left out; with `keep_blank` they become rows with an empty ``text``.

    Raises:
        UserError: the file cannot be read, or is a JSON list that does not parse.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4096)
        if head.startswith(_COMPRESSED):
            raise UserError(f"data file {path} is compressed; unpack it, and name what comes out (of a .gz: gunzip -k {path})")
        if head.startswith(b"PAR1"):
            yield from _parquet_rows(path)
        elif head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            yield from _list_rows(path)
        else:
            yield from _line_rows(path, head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"), keep_blank)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data file {path} cannot be read: {error}") from None


def _line_rows(path: Path, is_json: bool, keep_blank: bool) -> Iterator[LocatedRow]:
    with path.open(encoding=ENCODING) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                if keep_blank:
                    yield f"line {number}", {"text": ""}
            else:
                yield f"line {number}", _json_row(line) if is_json else {"text": line.strip()}


def _json_row(line: str) -> Row | BadRow:
    try:
        return _as_row(json.loads(line))
    except (ValueError, RecursionError) as error:
        return BadRow(f"not valid JSON ({error})")


def _list_rows(path: Path) -> Iterator[LocatedRow]:
    try:
        for number, row in enumerate(_items(path.read_text(encoding=ENCODING)), 1):
            yield f"row {number}", _as_row(row)
    except UnicodeDecodeError:
        raise
    # ValueError: also a number with thousands of digits.
    except (ValueError, RecursionError) as error:
        raise UserError(f"data file {path} is not valid JSON: {error}") from None


def _items(text: str) -> Iterator[object]:
    """Yield the items of a JSON list one at a time: all items together take many times the memory of the text."""

    def after_space(position: int) -> int:
        found = _SPACE.match(text, position)
        assert found
        return found.end()

    decoder, position, mark = json.JSONDecoder(), after_space(after_space(0) + 1), ","
    if text.startswith("]", position):
        mark, position = "]", after_space(position + 1)
    while mark == ",":
        item, position = decoder.raw_decode(text, position)
        yield item
        position = after_space(position)
        mark, position = text[position : position + 1], after_space(position + 1)
        if mark not in (",", "]"):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, position - 1)
    if position < len(text):
        raise json.JSONDecodeError("Extra data", text, position)


def _as_row(value: object) -> Row | BadRow:
    return value if isinstance(value, dict) else BadRow(f"a {type(value).__name__} instead of an object with fields")


def _parquet_rows(path: Path) -> Iterator[LocatedRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BLOCK):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except pyarrow.ArrowException as error:
        raise UserError(f"data file {path} is not readable parquet: {error}") from None
