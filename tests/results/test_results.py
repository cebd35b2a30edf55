"""Result files: what is written is read back; what is broken is named in one line; nothing is left half written."""

import json
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.result_files import GUIDE_CONFIG, make_result, make_row
from kava.config import load_config
from kava.config.quick_test import quick_test
from kava.errors import UserError
from kava.report.aggregate import SeedResults, combine
from kava.report.aggregate_file import read_aggregates
from kava.results import (
    CheckpointInfo,
    checkpoint_hash,
    dataset_label,
    read_result,
    read_rows,
    read_verified,
    result_path,
    rows_path,
    verified_result,
    verified_results,
    verified_rows,
    write_result,
    write_rows,
    write_text,
)
from kava.runtime.atomic import seal


def test_round_trip_and_layout(tmp_path):
    path = result_path(tmp_path / "seed_42", "gsm8k-hard")
    result = make_result(dataset="gsm8k-hard")
    write_result(path, result)
    assert read_result(path) == result
    assert path.name == "results_gsm8k-hard.yaml"
    assert rows_path(path).name == "results_gsm8k-hard.jsonl"
    assert os.listdir(path.parent) == ["results_gsm8k-hard.yaml"]
    content = yaml.safe_load(path.read_text())
    assert list(content) == ["format", "dataset", "metrics", "run", "data", "checkpoint", "answers", "provenance"]
    assert content["format"] == "kava.results/1"
    assert content["metrics"]["accuracy"] == 745 / 1319
    assert content["run"]["config"]["rkv"]["lambda"] == 0.1


@pytest.mark.parametrize("section", [None, 3, ["x"]])
def test_a_section_that_is_none_is_broken_where_it_is_read(tmp_path, section):
    """As a hand leaves it; the tables look into the sections."""
    path, result = result_path(tmp_path, "gsm8k"), make_result()
    content = result.model_dump(mode="json")
    content["run"]["config"]["dataset"] = section
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"results_gsm8k.yaml is broken: run.config: .*'dataset' is no section; evaluate again"):
        read_result(path)
    aggregate = combine([SeedResults("run", {"gsm8k": result})]).model_dump(mode="json")
    aggregate["config"]["dataset"] = section
    path.write_text(yaml.safe_dump({"llama1b_aug": aggregate}))
    with pytest.raises(UserError, match=r"is broken: config: .*'dataset' is no section; aggregate the seeds again"):
        read_aggregates(path)


def test_rows_keep_every_text(tmp_path):
    rows = [make_row(0), make_row(1, prediction=None, correct=False, text="二\u2028three\x85four\nfive")]
    write_rows(tmp_path / "results_x.jsonl", rows)
    assert read_rows(tmp_path / "results_x.jsonl") == rows


def test_broken_row_is_named_by_line(tmp_path):
    path = tmp_path / "results_x.jsonl"
    write_rows(path, [make_row(0), make_row(1)])
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=r"results_x.jsonl, line 2: not JSON .*evaluate again"):
        read_rows(path)
    path.write_text('{"id": "0"}\n')
    with pytest.raises(UserError, match=r"line 1 is broken: question: Field required"):
        read_rows(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not contain a mapping"),
        ("[1, 2]", "does not contain a mapping"),
        ("a: [1", "is not valid YAML"),
        ("a: !!python/object/apply:os.system [echo]", "is not valid YAML"),
        ("a: !!bool x", "is not valid YAML"),
        ("a: !!timestamp x", "is not valid YAML"),
        ("[" * 1500, "is not valid YAML"),
        ("format: kava.results/1", "is broken: dataset: Field required"),
        ("format: other/1", "is broken: format: Input should be 'kava.results/1'"),
    ],
)
def test_broken_files_are_named_with_the_cure(tmp_path, text, message):
    path = tmp_path / "results_gsm8k.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_result(path)
    line = str(caught.value)
    assert str(path) in line
    assert message in line
    assert "evaluate again" in line
    assert "\n" not in line


def test_missing_directory_and_binary_files_are_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_result(tmp_path / "results_gsm8k.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        read_result(tmp_path)
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read_result(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("accuracy", 0.9, "accuracy 0.9 is not correct / total = 745 / 1319"),
        ("accuracy", ".nan", "metrics.accuracy"),
        ("accuracy", "high", "metrics.accuracy"),
        ("correct", 745.0, "metrics.correct"),
        ("accuracy_ci95", [0.1, 0.2], "outside its interval"),
        ("speed", 3, "metrics.speed: Extra inputs are not permitted"),
    ],
)
def test_edited_metrics_are_refused(tmp_path, key, value, message):
    path = tmp_path / "results_gsm8k.yaml"
    content = make_result().model_dump(mode="json")
    content["metrics"][key] = float("nan") if value == ".nan" else value
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="result file") as caught:
        read_result(path)
    assert message in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_truncation_or_damage_is_a_user_error_or_a_valid_result(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "results_gsm8k.yaml"
    whole = yaml.safe_dump(make_result().model_dump(mode="json")).encode()
    start = data.draw(st.integers(0, len(whole)))
    junk = data.draw(st.binary(max_size=30))
    path.write_bytes(whole[:start] + junk + whole[start + data.draw(st.integers(0, 200)) :])
    try:
        read_result(path)
    except UserError as error:
        assert "\n" not in str(error)


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "results_gsm8k.yaml"
    write_text(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*results_gsm8k.yaml: No space left on device"):
        write_result(path, make_result())
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["results_gsm8k.yaml"]


def test_writing_below_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / "file" / "results.yaml", "x")


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "x; rm -rf ~", "a\nb", "$(id)"])
def test_names_that_reach_a_path_are_checked(name):
    with pytest.raises(UserError, match="not a valid name"):
        result_path("outputs", name)


def checkpoint(directory, weights="w", **about):
    """A sealed directory like a checkpoint's; returns its hash."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "weights").write_text(weights)
    (directory / "kava_config.json").write_text(json.dumps({"format": "kava.checkpoint/1", "config": {}, **about}))
    seal(directory)
    return checkpoint_hash(directory)


def test_a_result_belongs_to_the_checkpoint_beside_it(tmp_path):
    path, best = result_path(tmp_path, "gsm8k"), tmp_path / "best_checkpoint"
    result = make_result().model_copy(update={"checkpoint": CheckpointInfo(path="run/best_checkpoint", manifest=checkpoint(best))})
    write_result(path, result)
    assert verified_result(path) == result
    (best / "README.md").write_text("a card that was written later")
    seal(best)
    assert verified_result(path) == result
    checkpoint(best, "weights of another training")
    with pytest.raises(UserError, match=r"results_gsm8k.yaml was measured on another checkpoint \(run/best_checkpoint\).*evaluate again"):
        verified_result(path)
    found, (problem,) = verified_results([path])
    assert (found, "another checkpoint" in problem) == ([], True)


def test_results_of_earlier_versions_are_known_by_the_training_they_recorded(tmp_path):
    path, best = result_path(tmp_path, "gsm8k"), tmp_path / "best_checkpoint"
    training = {"name": "x", "provenance": {"time_utc": "2026-11-24T10:00:00"}}
    write_result(path, make_result().model_copy(update={"provenance": {"training": training}}))
    assert verified_result(path).checkpoint is None  # nothing beside it to contradict it
    checkpoint(best, **training)
    assert verified_result(path).checkpoint is None
    checkpoint(best, **(training | {"provenance": {"time_utc": "2026-11-25T10:00:00"}}))
    with pytest.raises(UserError, match="measured on another checkpoint than"):
        verified_result(path)


@pytest.mark.parametrize("recorded", [True, False], ids=["hash", "counts"])
def test_rows_that_are_cut_or_gone_are_noticed(tmp_path, recorded):
    path = result_path(tmp_path, "gsm8k")
    answers = write_rows(rows_path(path), [make_row(0), make_row(1, correct=False)])
    result = make_result(correct=1, total=2).model_copy(update={"answers": answers if recorded else None})
    write_result(path, result)
    assert [row.id for row in read_verified(path).needed_rows()] == ["0", "1"]
    whole = rows_path(path).read_text()
    rows_path(path).write_text(whole.splitlines(keepends=True)[0])
    with pytest.raises(UserError, match=r"results_gsm8k.jsonl is not the one that was written with results_gsm8k.yaml"):
        verified_result(path)
    rows_path(path).unlink()
    found = read_verified(path)
    assert (found.result, found.rows) == (result, None)
    with pytest.raises(UserError, match=r"results_gsm8k.jsonl does not exist; evaluate again"):
        found.needed_rows()
    with pytest.raises(UserError, match=r"results_gsm8k.jsonl does not exist; evaluate again"):
        verified_rows(path, result)


def test_quick_tests_and_parts_of_a_test_set_are_known(tmp_path):
    config = load_config(GUIDE_CONFIG)
    part = make_result(config=load_config(GUIDE_CONFIG, {"evaluation.max_samples": 20}), correct=4, total=20)
    quick = make_result(config=quick_test(config, {}), correct=4, total=20)
    covered = make_result(config=load_config(GUIDE_CONFIG, {"evaluation.max_samples": 2000}))
    assert [result.partial for result in (make_result(), covered, part, quick)] == [
        "",
        "",
        "first 20 questions",
        "quick test, first 20 questions",
    ]
    for name, result in (("part", part), ("whole", make_result())):
        write_result(result_path(tmp_path, name), result)
    found, (problem,) = verified_results(sorted(tmp_path.glob("results_*.yaml")))
    assert found == [make_result()]
    assert "results_part.yaml is not a full evaluation (first 20 questions)" in problem


def test_another_file_of_the_same_name_is_another_data_set(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "elsewhere" / "test.jsonl"
    path.write_text("{}\n")
    assert dataset_label("test", {"test": "builtin:mini/test"}) == "test"
    assert dataset_label(str(path), {"test": "builtin:mini/test"}) == "elsewhere-test"
    assert dataset_label(str(path), {"test": str(path)}) == dataset_label(str(path), {}) == "test"


def test_a_result_may_be_json_and_a_device_stays_one(tmp_path):
    result = make_result()
    write_result(tmp_path / "result.json", result)
    assert json.loads((tmp_path / "result.json").read_text())["dataset"] == "gsm8k"
    assert read_result(tmp_path / "result.json") == result
    write_result("/dev/null", result)
    assert not Path("/dev/null").is_file()
    with pytest.raises(UserError, match="it names no file"):
        write_text("", "text")
