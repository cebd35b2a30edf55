"""`kava_config.json`: what a checkpoint says of itself, and one sentence for each way in which it can be broken."""

import json
from pathlib import Path
from typing import Any

import pytest

from kava.checkpoint.kava_config import KAVA_CONFIG, metadata_of, read_kava_config
from kava.config import Config
from kava.errors import UserError
from kava.runtime.atomic import FORMAT

GOOD: dict[str, Any] = {"format": FORMAT, "method": "kava", "base": "a base", "config": Config().to_dict(), "step": 7}


def write(place: Path, content: Any) -> Path:
    (place / KAVA_CONFIG).write_text(content if isinstance(content, str) else json.dumps(content))
    return place


def test_what_was_written_is_read_and_split_into_model_and_metadata(tmp_path: Path) -> None:
    content = read_kava_config(write(tmp_path, GOOD))
    assert content == GOOD
    assert metadata_of(content) == {"step": 7}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ([], "is not of the format"),
        (GOOD | {"format": "another"}, "is not of the format"),
        (GOOD | {"base": None}, "says neither its configuration nor its base model"),
        (GOOD | {"config": 3}, "says neither its configuration nor its base model"),
        (GOOD | {"method": "codi"}, "is inconsistent"),
        (GOOD | {"name": 3}, "is inconsistent"),
        (GOOD | {"step": "seven"}, "step: Input should be a valid integer"),
        (GOOD | {"data": {"source": "x"}}, "data.rows: Field required"),
    ],
    ids=range(10),
)
def test_what_is_broken_is_said(tmp_path: Path, content: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read_kava_config(write(tmp_path, content))


def test_a_directory_without_one_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"is not a checkpoint: it has no {KAVA_CONFIG}; train first"):
        read_kava_config(tmp_path)
