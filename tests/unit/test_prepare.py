"""Training rows that are too long are left out, counted and named."""

import json
from pathlib import Path

import pytest

from kava.config import Config, build_config
from kava.errors import UserError
from kava.train.prepare import prepare_data
from tiny import mini_builder

# Alternately short and too long; the last tenth is held out for validation.
LENGTHS = tuple(1 if row % 2 else 50 for row in range(20))


def config_over(path: Path, max_length: int) -> Config:
    return build_config({}, "a test", {"dataset.name": str(path), "dataset.max_length": max_length})


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAVA_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "rows.jsonl"
    questions = [f"{row} " + "apples " * length + "?" for row, length in enumerate(LENGTHS)]
    path.write_text("".join(json.dumps({"question": q, "steps": ["<<1+1=2>>"], "answer": "2"}) + "\n" for q in questions))
    return path


def test_they_are_counted_and_the_first_are_named(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared = prepare_data(config_over(rows, 40), mini_builder())
    said = capsys.readouterr().err
    total = len(prepared.train) + prepared.data["too_long"]
    assert prepared.data["rows"] == len(prepared.train)
    assert f"{prepared.data['too_long']} of {total} training rows are longer than dataset.max_length 40 tokens; left out: rows/" in said
    assert all(example.length <= 40 for example in prepared.train)


def test_nothing_left_is_an_error(rows: Path) -> None:
    with pytest.raises(UserError, match="longer than dataset.max_length 8 tokens; raise it"):
        prepare_data(config_over(rows, 8), mini_builder())


def test_a_training_set_that_is_all_validation_is_an_error(rows: Path) -> None:
    """What is held out for validation is left out of training, and here every row is the same problem."""
    rows.write_text((json.dumps({"question": "How many?", "steps": ["<<1+1=2>>"], "answer": "2"}) + "\n") * 20)
    with pytest.raises(UserError, match="no training row"):
        prepare_data(config_over(rows, 40), mini_builder())
