"""Rows that are too long or broken are left out, counted and named, in trainings and in evaluations."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.checks import make_trained
from helpers.result_files import make_result
from helpers.tiny import mini_builder, mini_examples, total_length
from kava.checkpoint import save_checkpoint
from kava.config import Config, build_config
from kava.errors import UserError
from kava.evaluate.evaluate import Request, default_output, evaluate
from kava.methods import METHODS
from kava.report.aggregate import SeedResults, combine
from kava.results import CheckpointInfo, checkpoint_hash, read_result, verified_rows, write_result
from kava.train.prepare import eviction_note, prepare_data, resolve_base
from kava.train.train import train

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
    assert all(total_length(example) <= 40 for example in prepared.train)


def test_what_eviction_will_leave_out_is_counted_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAVA_CACHE", str(tmp_path / "cache"))
    examples = list(mini_examples(40))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": e.question, "steps": e.steps, "answer": e.answer}) + "\n" for e in examples))
    for drop in (True, False):
        config = build_config({}, "a test", {"dataset.name": str(path), "dataset.drop_last_step": drop, "latent.num_tokens": 8})
        prepared = prepare_data(config, mini_builder())
        traces = [len(example.cot(drop)) for example in prepared.train]
        longer, left_out = sum(t > 8 for t in traces) / len(traces), sum(max(t - 8, 0) for t in traces) / sum(traces)
        assert prepared.data["traces_evicted_from"] == pytest.approx(longer)
        assert prepared.data["entries_evicted"] == pytest.approx(left_out)
        assert eviction_note(prepared.data, 8) == (
            f"{longer:.0%} of the teacher's traces have more entries than latent.num_tokens 8;"
            f" eviction leaves out {left_out:.0%} of all entries"
        )
    enough = build_config({}, "a test", {"dataset.name": str(path), "latent.num_tokens": 24})
    held = prepare_data(enough, mini_builder()).data
    assert held["traces_evicted_from"] == 0
    assert eviction_note(held, 24) is None
    untaught = prepare_data(build_config({}, "x", {"dataset.name": str(path), "method": "pccot"}), mini_builder()).data
    assert "entries_evicted" not in untaught
    assert eviction_note(untaught, 24) is None


def test_a_base_s_directory_is_recorded_in_full_and_the_configuration_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "llama").mkdir(parents=True)
    config = build_config({}, "a test", {"model.name": "models/llama"})
    assert resolve_base(config) == str(tmp_path / "models" / "llama")
    assert config.model.name == "models/llama"
    assert resolve_base(build_config({}, "a test", {"model.name": "meta-llama/x"})) == "meta-llama/x"


def test_nothing_left_is_an_error(rows: Path) -> None:
    with pytest.raises(UserError, match="longer than dataset.max_length 8 tokens; raise it"):
        prepare_data(config_over(rows, 8), mini_builder())


@pytest.mark.parametrize("method", METHODS)
def test_rows_without_a_trace_are_refused_where_the_method_needs_one(rows: Path, method: str) -> None:
    rows.write_text("".join(json.dumps({"question": f"{row} apples?", "answer": "2"}) + "\n" for row in range(20)))
    config = build_config({}, "a test", {"dataset.name": str(rows), "method": method})
    if method == "no_cot":
        assert len(prepare_data(config, mini_builder()).train) == 18
        return
    with pytest.raises(UserError, match=f"no training row of '.*rows.jsonl' has a trace, which method {method} trains on"):
        prepare_data(config, mini_builder())


def test_a_training_set_that_is_all_validation_is_an_error(rows: Path) -> None:
    """What is held out for validation is left out of training, and here every row is the same problem."""
    rows.write_text((json.dumps({"question": "How many?", "steps": ["<<1+1=2>>"], "answer": "2"}) + "\n") * 20)
    with pytest.raises(UserError, match="no training row"):
        prepare_data(config_over(rows, 40), mini_builder())


def write_rows(path: Path, count: int, bad: int) -> None:
    rows = [json.dumps({"question": f"{path.stem} {row}?", "steps": ["<<1+1=2>>"], "answer": "2"}) for row in range(count)]
    path.write_text("\n".join([*rows, *['{"question": "no answer", "steps": []}'] * bad]) + "\n")


@pytest.mark.parametrize(
    ("bad", "settings", "message"),
    [
        (0, {"dataset.name": "nothing"}, "nothing"),
        (1, {}, "line 13: answer None is not a number"),
        (0, {"dataset.max_length": 8}, "longer than dataset.max_length 8"),
        (0, {"method": "icot", "training.max_steps": 3}, "the curriculum of icot cannot end within the run"),
    ],
)
def test_wrong_data_is_found_before_a_base_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int, settings: dict[str, object], message: str
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("KAVA_CACHE", str(cache))
    write_rows(tmp_path / "train.jsonl", 12, bad)
    whole = {"model.name": "builtin:mini", "dataset.name": str(tmp_path / "train.jsonl"), "lora.enabled": False} | settings
    with pytest.raises(UserError, match=message):
        train(build_config({}, "a test", whole), tmp_path / "out", report_to=(), quiet=True)
    assert not list(cache.rglob("*.safetensors"))


def test_bad_rows_are_refused_or_counted_in_training_and_in_validation(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", 12, bad=3)
    write_rows(tmp_path / "validation.jsonl", 4, bad=2)
    with pytest.raises(UserError, match="validation.jsonl line 5: answer None is not a number; fix the row, or set dataset.on_bad_row"):
        prepare_data(config_over(tmp_path, 40), mini_builder())
    config = build_config({}, "a test", {"dataset.name": str(tmp_path), "dataset.on_bad_row": "skip"})
    data = prepare_data(config, mini_builder()).data
    assert {key: data[key] for key in ("rows", "bad_rows", "validation_rows", "validation_bad_rows")} == {
        "rows": 12, "bad_rows": 3, "validation_rows": 4, "validation_bad_rows": 2,
    }  # fmt: skip
    assert data["fingerprint"] != data["validation_fingerprint"]


def test_an_evaluation_writes_how_many_rows_it_left_out(tmp_path: Path) -> None:
    trained = make_trained(tmp_path)
    trained.config.evaluation.max_new_tokens = 2
    save_checkpoint(tmp_path / "saved", trained)
    write_rows(tmp_path / "questions.jsonl", 3, bad=2)
    request = Request(str(tmp_path / "saved"), str(tmp_path / "questions.jsonl"))
    with pytest.raises(UserError, match="questions.jsonl line 4: answer None is not a number"):
        evaluate(request, tmp_path / "result.yaml")
    assert not (tmp_path / "result.yaml").exists()
    evaluate(replace(request, batch_size=2, overrides={"dataset.on_bad_row": "skip"}), tmp_path / "result.yaml")
    result = read_result(tmp_path / "result.yaml")
    assert result.provenance["batch_size"] == 2
    assert (result.data.rows, result.data.bad_rows) == (3, 2)
    assert result.data.asked == str(tmp_path / "questions.jsonl")
    assert result.checkpoint == CheckpointInfo(path=(tmp_path / "saved").as_posix(), manifest=checkpoint_hash(tmp_path / "saved"))
    assert len(verified_rows(tmp_path / "result.yaml", result)) == 3


def test_a_file_that_changed_between_two_seeds_is_noticed(tmp_path: Path) -> None:
    runs = []
    for seed, rows in ((1, 12), (2, 16)):
        write_rows(tmp_path / "train.jsonl", rows, bad=0)
        write_rows(tmp_path / "validation.jsonl", 4, bad=0)
        data = prepare_data(config_over(tmp_path, 40), mini_builder()).data
        result = make_result(seed).model_copy(update={"provenance": {"training": {"data": data}}})
        runs.append(SeedResults(f"seed_{seed}", {"gsm8k": result}))
    with pytest.raises(UserError, match="seed_1 and seed_2 were trained on different data under one name"):
        combine(runs)


def test_a_seed_given_to_the_evaluation_is_no_second_seed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--training.seed is a training setting and cannot change at evaluation: leave it out"):
        evaluate(Request(str(tmp_path), "gsm8k", overrides={"training.seed": 43}))


def test_a_result_on_another_file_is_not_overwritten(tmp_path: Path) -> None:
    trained = make_trained(tmp_path)
    trained.config.evaluation.datasets = {"test": "builtin:mini/test"}
    save_checkpoint(tmp_path / "run" / "best_checkpoint", trained)
    run = str(tmp_path / "run")
    for folder in ("a", "b"):
        for name in ("test", "mine"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}.jsonl").write_text("")
    assert default_output(run, "test") == tmp_path / "run" / "results_test.yaml"
    assert default_output(run, str(tmp_path / "a" / "test.jsonl")) == tmp_path / "run" / "results_a-test.yaml"
    mine = str(tmp_path / "a" / "mine.jsonl")
    path = default_output(run, mine)
    result = make_result(dataset="mine")
    write_result(path, result.model_copy(update={"data": result.data.model_copy(update={"asked": mine})}))
    assert default_output(run, mine) == path
    with pytest.raises(UserError, match=r"results_mine.yaml holds the result on '.*a/mine.jsonl'; name another file with --output"):
        default_output(run, str(tmp_path / "b" / "mine.jsonl"))


def test_a_whole_result_gives_way_to_a_whole_one_alone(tmp_path: Path) -> None:
    trained = make_trained(tmp_path)
    trained.config.evaluation.max_new_tokens = 2
    for name in ("best_checkpoint", "checkpoint-5"):
        save_checkpoint(tmp_path / "run" / name, trained)
    write_rows(tmp_path / "mine.jsonl", 3, bad=0)
    run, mine = str(tmp_path / "run"), str(tmp_path / "mine.jsonl")
    path = default_output(run, mine, ["--max_samples"])
    evaluate(Request(run, mine), path)
    assert default_output(run, mine) == path
    with pytest.raises(UserError, match="with --max_samples name another file with --output"):
        default_output(run, mine, ["--max_samples"])
    with pytest.raises(UserError, match="with checkpoint-5 name another file"):
        default_output(f"{run}/checkpoint-5", mine)


@pytest.mark.parametrize("output", ["", ".", "x.jsonl", "saved", "questions.jsonl/x.yaml"])
def test_a_place_that_no_result_can_have_is_named_before_the_work(tmp_path: Path, output: str) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "questions.jsonl").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        evaluate(Request("nowhere", "test"), tmp_path / output if output else "")


@pytest.mark.parametrize("name", ["batch_size", "max_samples", "max_new_tokens"])
def test_counts_below_one_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is 0; it must be at least 1"):
        evaluate(Request("nowhere", "test", **{name: 0}))
