"""Text files of a user: with or without a byte-order mark, and one sentence for what cannot be read."""

from pathlib import Path

import pytest

from kava.errors import UserError
from kava.runtime.text import read_text


def test_a_byte_order_mark_and_windows_line_ends_are_not_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert read_text(path, "suite", "name another") == "one\ntwo\n"


def test_what_cannot_be_read_names_the_file_and_the_cure(tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    cases = {
        tmp_path / "absent.txt": "absent.txt does not exist; name another",
        latin: r"latin.txt cannot be read \(byte 3 is not UTF-8\): save it as UTF-8",
        tmp_path: r"cannot be read \(Is a directory\); name another",
    }
    for path, sentence in cases.items():
        with pytest.raises(UserError, match=f"^suite {path.parent}.*{sentence}$"):
            read_text(path, "suite", "name another")
    with pytest.raises(UserError, match=r"cannot be read \(.*null byte.*\); name another"):
        read_text("nul\0byte", "suite", "name another")
