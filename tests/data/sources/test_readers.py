"""Rows of a file, whatever its form: JSON lines, a JSON list, plain lines, parquet; each with its place."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from kava.data.sources.readers import BadRow, read_rows
from kava.errors import UserError

ROWS = [{"a": 1}, {"a": 2}]


def write(place: Path, content: str | bytes) -> Path:
    path = place / "data"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("content", ['{"a": 1}\n\n{"a": 2}\n', '\ufeff{"a": 1}\r\n\r\n{"a": 2}'])
def test_json_lines_have_the_number_of_their_line(tmp_path: Path, content: str) -> None:
    assert list(read_rows(write(tmp_path, content))) == [("line 1", ROWS[0]), ("line 3", ROWS[1])]


@pytest.mark.parametrize("content", [json.dumps(ROWS), '\ufeff [ {"a": 1} ,\n{"a": 2} ] \n'])
def test_a_list_has_numbered_rows(tmp_path: Path, content: str) -> None:
    assert list(read_rows(write(tmp_path, content))) == [("row 1", ROWS[0]), ("row 2", ROWS[1])]


def test_an_empty_list_has_none(tmp_path: Path) -> None:
    assert list(read_rows(write(tmp_path, " [ ] "))) == []


def test_plain_lines_are_text(tmp_path: Path) -> None:
    path = write(tmp_path, "one \n\n two\n")
    assert list(read_rows(path)) == [("line 1", {"text": "one"}), ("line 3", {"text": "two"})]
    assert list(read_rows(path, keep_blank=True))[1] == ("line 2", {"text": ""})


def test_parquet(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "data")
    assert list(read_rows(tmp_path / "data")) == [("row 1", ROWS[0]), ("row 2", ROWS[1])]


def test_a_row_that_is_none_is_marked_and_the_others_are_read(tmp_path: Path) -> None:
    (_, first), (_, broken), (place, last) = read_rows(write(tmp_path, '{"a": 1}\n{"a": \n{"a": 2}\n'))
    assert (first, place, last) == (ROWS[0], "line 3", ROWS[1])
    assert isinstance(broken, BadRow)
    assert broken.reason.startswith("not valid JSON")
    assert list(read_rows(write(tmp_path, "[3]"))) == [("row 1", BadRow("a int instead of an object with fields"))]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('[{"a": 1}', "is not valid JSON: Expecting ',' delimiter"),
        ('[{"a": 1}] x', "is not valid JSON: Extra data"),
        (b"\x1f\x8brest", "is compressed; unpack it"),
        (b"PAR1rest", "is not readable parquet"),
        (b"caf\xe9", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: str | bytes, sentence: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=f"^data file {path} {sentence}"):
        list(read_rows(path))
