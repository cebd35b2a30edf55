"""`kava evaluate` on several test sets at once: the model is loaded once, and each result is the one it gives alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.checks import make_trained
from kava import cli
from kava.checkpoint import save_checkpoint
from kava.evaluate import evaluate as module
from kava.results import checkpoint_hash, read_result, read_rows, rows_path


def evaluated(*options: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main("evaluate", ["--checkpoint", "builtin:mini", *options, "--max_samples", "6"])
    return int(stop.value.code or 0)


def answers(path: Path) -> list[dict[str, Any]]:
    return [row.model_dump() for row in read_rows(rows_path(path))]


def test_each_result_is_that_of_its_set_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    opened = []
    load = module.open_checkpoint
    monkeypatch.setattr(module, "open_checkpoint", lambda *arguments: opened.append(arguments) or load(*arguments))
    names = ["test", "larger", "reworded"]
    together, alone = [tmp_path / f"{name}.yaml" for name in names], [tmp_path / f"{name}_alone.yaml" for name in names]
    assert evaluated("--eval_dataset", *names, "--output", *map(str, together)) == 0
    assert len(opened) == 1
    shown = capsys.readouterr().out
    assert [f"kava on {name} (6 questions)" in shown for name in names] == [True] * 3
    for name, path, other in zip(names, together, alone, strict=True):
        assert evaluated("--dataset", name, "--output", str(other)) == 0
        assert answers(path) == answers(other)
        result, single = read_result(path), read_result(other)
        assert (result.dataset, result.run, result.data, result.checkpoint) == (name, single.run, single.data, single.checkpoint)
        assert result.metrics.correct == single.metrics.correct


@pytest.mark.parametrize(
    ("datasets", "outputs"),
    [
        (["test", "larger"], ["one.yaml"]),
        (["test", "larger"], ["one.yaml", "./one.yaml"]),
        (["test"], ["one.yaml", "two.yaml"]),
        (["test", "larger"], ["one.yaml", "one.yaml", "two.yaml"]),
        (["test", "larger"], ["one.yaml", "one.json"]),
    ],
)
def test_a_result_file_per_set(datasets: list[str], outputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluated("--eval_dataset", *datasets, "--output", *(f"{tmp_path}/{name}" for name in outputs)) == 2
    assert "with one --output per data set or none" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_one_set_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert evaluated("--eval_dataset", "test", "test") == 2
    assert "each data set needs a result file of its own" in capsys.readouterr().err


def test_a_set_that_cannot_be_read_is_named_before_any_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = tmp_path / "first.yaml", tmp_path / "second.yaml"
    assert evaluated("--eval_dataset", "test", str(tmp_path / "missing.jsonl"), "--output", *map(str, outputs)) == 2
    assert "missing.jsonl" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_result_names_the_checkpoint_that_was_loaded(tmp_path: Path) -> None:
    """Whatever lies in its directory when the next set is done: a training may replace its best checkpoint meanwhile."""
    trained = make_trained(tmp_path)
    trained.config.evaluation.max_new_tokens = 2
    save_checkpoint(tmp_path / "saved", trained)
    loaded = checkpoint_hash(tmp_path / "saved")
    names = "builtin:mini/test", "builtin:mini/larger"
    results = module.evaluate_all([(module.Request(str(tmp_path / "saved"), name, max_samples=2), None) for name in names])
    first = next(results)
    save_checkpoint(tmp_path / "saved", replace(trained, metadata={"step": 9}))
    assert checkpoint_hash(tmp_path / "saved") != loaded
    assert [result.checkpoint and result.checkpoint.manifest for result in (first, *results)] == [loaded, loaded]
