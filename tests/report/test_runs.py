"""What a report finds below an outputs directory: each result with its own questions, and a reason for what is left out."""

from pathlib import Path

import pytest

from helpers.result_files import make_result, make_row
from kava.report.group import variants
from kava.report.paired import paired
from kava.report.runs import find_runs
from kava.results import Result, Row, read_rows, rows_path, verified, write_result, write_rows


def write(path: Path, correct: int, seed: int = 42, **overrides: object) -> None:
    """A result on four questions with its rows."""
    answers = write_rows(rows_path(path), [make_row(number, correct=number < correct) for number in range(4)])
    result: Result = make_result(seed, correct=correct, total=4, overrides=overrides)
    write_result(path, result.model_copy(update={"answers": answers}))


def test_a_result_under_another_file_name_has_its_own_questions(tmp_path: Path) -> None:
    """As `evaluate.py --no_latent --output ...` leaves it beside the latent result of the same run."""
    write(tmp_path / "seed_42" / "results_gsm8k.yaml", 1)
    write(tmp_path / "seed_42" / "results_written.yaml", 3, **{"evaluation.use_latent": False})
    found = find_runs(tmp_path)
    assert found.problems == []
    assert [sum(group.marks("gsm8k")[42].values()) for group in found.groups] == [1, 3]


def test_a_written_evaluation_of_a_latent_method_is_no_method_of_its_own(tmp_path: Path) -> None:
    """Whichever file comes first: KaVa is what answers in latents."""
    write(tmp_path / "results_a.yaml", 3, **{"evaluation.use_latent": False})
    write(tmp_path / "results_gsm8k.yaml", 1)
    departures = {sum(group.marks("gsm8k")[42].values()): changed for group, changed in variants(find_runs(tmp_path).groups)}
    assert departures == {1: {}, 3: {"evaluation.use_latent": False}}


def test_questions_of_another_content_are_not_paired(tmp_path: Path) -> None:
    """Ids count from 0 in every file."""
    for name, content in (("a", "0" * 16), ("b", "0" * 16), ("c", "1" * 16)):
        result = make_result(correct=2, total=4, data_fingerprint=content, overrides={"loss.alpha2_kv": 1 + len(name)})
        answers = write_rows(rows_path(tmp_path / name / "results_gsm8k.yaml"), [make_row(i, correct=i < 2) for i in range(4)])
        write_result(tmp_path / name / "results_gsm8k.yaml", result.model_copy(update={"answers": answers}))
    a, b, c = find_runs(tmp_path).groups
    assert paired(a, b, "gsm8k") is not None
    assert paired(a, c, "gsm8k") is None


def test_a_second_result_of_the_same_evaluation_is_named_and_left_out(tmp_path: Path) -> None:
    write(tmp_path / "results_again.yaml", 1)
    write(tmp_path / "results_gsm8k.yaml", 3)
    found = find_runs(tmp_path)
    assert [group.aggregate.datasets["gsm8k"].accuracy_mean for group in found.groups] == [0.25]
    (problem,) = found.problems
    assert problem.endswith("results_gsm8k.yaml: results_again.yaml is one of the same run and data set; left out")


def test_questions_are_read_once_and_missing_ones_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = [tmp_path / "kava" / f"seed_{seed}" / "results_gsm8k.yaml" for seed in (1, 2)]
    for seed, path in enumerate(results, 1):
        write(path, correct=seed, seed=seed)
    read: list[Path] = []

    def counted(path: Path) -> list[Row]:
        read.append(path)
        return read_rows(path)

    monkeypatch.setattr(verified, "read_rows", counted)
    (group,) = find_runs(tmp_path).groups
    assert read == [rows_path(path) for path in results]
    assert {seed: sum(row.correct for row in rows) for seed, rows in group.rows["gsm8k"].items()} == {1: 1, 2: 2}
    missing = rows_path(results[1])
    missing.unlink()
    found = find_runs(tmp_path)
    assert [(group.aggregate.num_seeds, group.rows) for group in found.groups] == [(2, {})]
    what = "its accuracy is shown; what needs the questions is not"
    assert found.problems == [f"per-question file {missing} does not exist; evaluate again to write a new one ({what})"]
