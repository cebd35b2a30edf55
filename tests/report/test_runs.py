"""What a report finds below an outputs directory: each result with its own questions, and a reason for what is left out."""

from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from helpers.result_files import make_result, make_row
from kava.report.group import variants
from kava.report.grouping import by_scope
from kava.report.paired import paired
from kava.report.reference import load_reference
from kava.report.runs import find_runs, read_scalars
from kava.results import Result, Row, read_rows, rows_path, verified, write_result, write_rows
from kava.train.run_directory import LOGS


def write(path: Path, correct: int, seed: int = 42, **overrides: object) -> None:
    """A result on four questions with its rows."""
    answers = write_rows(rows_path(path), [make_row(number, correct=number < correct) for number in range(4)])
    result: Result = make_result(seed, correct=correct, total=4, overrides=overrides)
    write_result(path, result.model_copy(update={"answers": answers}))


def log(directory: Path, losses: dict[int, float], since: int = 0) -> None:
    """TensorBoard's file of a training, as one start of it writes it."""
    writer = SummaryWriter(str(directory / LOGS), filename_suffix=".written")
    for step, loss in losses.items():
        writer.add_scalar("train/loss", loss, step)
    writer.close()
    # TensorBoard reads files in the order of their names, which begin with the second of the start.
    (written,) = (directory / LOGS).glob("*.written")
    written.rename(written.with_name(f"events.out.tfevents.{since:010}.host.1.0"))


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


def test_the_directory_of_one_configuration_is_one_group_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`kava report outputs/mini`, whose seeds lie directly in it."""
    for seed in (42, 123):
        write(tmp_path / "mini" / f"seed_{seed}" / "results_gsm8k.yaml", 1, seed)
        log(tmp_path / "mini" / f"seed_{seed}", {1: 0.5})
    monkeypatch.chdir(tmp_path / "mini")
    for root in (tmp_path, tmp_path / "mini", "."):
        found = find_runs(root)
        assert [(group.path, group.aggregate.seeds) for group in found.groups] == [("mini", [42, 123])]
        assert [(curve.path, curve.name) for curve in found.curves] == [("mini", "seed_123"), ("mini", "seed_42")]


def test_directories_of_one_seed_are_shown_apart(tmp_path: Path) -> None:
    """`submit_kava.sh` names the directory by its job: outputs/seed_12345."""
    for job in (12345, 12346):
        write(tmp_path / "outputs" / f"seed_{job}" / "results_gsm8k.yaml", job % 2 + 1)
    found = find_runs(tmp_path / "outputs")
    assert [(group.path, group.aggregate.seeds) for group in found.groups] == [("seed_12345", [42]), ("seed_12346", [42])]
    assert found.problems == ["outputs: the mean over its seeds, because 2 directories hold seed 42; each directory is shown by itself"]


def test_a_step_that_was_logged_twice_has_the_later_value(tmp_path: Path) -> None:
    log(tmp_path, {step: float(step) for step in (1, 2, 3, 4)}, since=1)
    log(tmp_path, {step: -float(step) for step in (3, 4, 5)}, since=2)
    assert read_scalars(tmp_path / LOGS)["train/loss"] == [(1, 1), (2, 2), (3, -3), (4, -4), (5, -5)]


def test_labels_of_runs_in_one_folder_are_unique(tmp_path: Path) -> None:
    """Three results that differ in settings of logging alone: no line of a figure may be lost."""
    for number, overrides in enumerate(({}, {"training.logging_steps": 8}, {"training.logging_steps": 9})):
        write(tmp_path / "kava" / "seed_42" / f"results_{number}.yaml", number, **overrides)
    reference = load_reference()
    ((_, labelled),) = by_scope([(group, "KaVa") for group in find_runs(tmp_path).groups], reference)
    assert len({label for _, label in labelled}) == 3


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
