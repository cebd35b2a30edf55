"""Aggregation over seeds: numbers by hand, the guide's layout, and refusals that name what does not belong together."""

import json
import math

import pytest
import yaml

from helpers.result_files import make_result, write_seed_dirs
from kava.config import load_config
from kava.config.differences import ABSENT, differences
from kava.errors import UserError
from kava.report.aggregate import SeedResults, combine, entry_name, read_run, recorded_datasets
from kava.report.aggregate_file import distinct, find_aggregates, read_aggregates, write_aggregates
from kava.report.group import Group, variants
from kava.results import CheckpointInfo, checkpoint_hash, result_path, write_result
from kava.runtime.atomic import seal


def runs(*results):
    return [SeedResults(f"run{index}", {result.dataset: result}) for index, result in enumerate(results)]


def test_mean_deviation_and_interval_by_hand():
    aggregate = combine(runs(make_result(42, correct=561, total=1000), make_result(123, correct=569, total=1000, passes=7.1),
                             make_result(456, correct=565, total=1000, passes=7.0)))  # fmt: skip
    summary = aggregate.datasets["gsm8k"]
    assert (aggregate.num_seeds, aggregate.seeds) == (3, [42, 123, 456])
    assert summary.accuracy_mean == pytest.approx(0.565)
    assert summary.accuracy_std == pytest.approx(0.004)
    half = 4.302652729911275 * 0.004 / math.sqrt(3)
    assert summary.accuracy_ci95 == pytest.approx([0.565 - half, 0.565 + half])
    assert (summary.forward_passes_mean, summary.forward_passes_std) == pytest.approx((7.0, 0.1))
    assert (summary.generated_tokens_mean, summary.generated_tokens_std) == pytest.approx((3.5, 0.0))
    assert (summary.seconds_per_question_mean, summary.cache_bytes_per_question_mean) == pytest.approx((0.25, 1024))
    assert [(entry.seed, entry.accuracy) for entry in summary.per_seed] == [(42, 0.561), (123, 0.569), (456, 0.565)]
    assert "seed" not in aggregate.config["training"]


def test_data_types_with_one_fingerprint_are_one_configuration():
    results = [make_result(seed, overrides={"model.dtype": dtype}) for seed, dtype in ((42, "auto"), (123, "float32"))]
    assert results[0].run.fingerprint == results[1].run.fingerprint
    aggregate = combine(runs(*results))
    assert (aggregate.seeds, aggregate.config["model"]["dtype"]) == ([42, 123], "auto")
    groups = [Group(dtype, combine(runs(make_result(overrides={"model.dtype": dtype})))) for dtype in ("auto", "float32", "bfloat16")]
    assert [changed for _, changed in variants(groups)] == [{}, {}, {"model.dtype": "bfloat16"}]


def test_one_seed_has_null_deviations():
    summary = combine(runs(make_result())).datasets["gsm8k"]
    assert (summary.n, summary.accuracy_std, summary.forward_passes_std, summary.accuracy_ci95) == (1, None, None, None)


def test_the_file_has_the_guides_layout_and_reads_back(tmp_path):
    directories = write_seed_dirs(tmp_path, {"gsm8k": [561, 569, 565], "gsm8k-hard": [338, 342, 346]})
    seeds = [read_run(directory, ["gsm8k", "gsm8k-hard"]) for directory in directories]
    aggregates = {entry_name(seeds, None): combine(seeds, "KAVA-LLaMA-3.2-1B")}
    write_aggregates(aggregates, tmp_path / "a.json", tmp_path / "aggregated_results.yaml")
    content = yaml.safe_load((tmp_path / "aggregated_results.yaml").read_text())
    assert content == json.loads((tmp_path / "a.json").read_text())
    assert list(content) == ["llama1b_aug"]
    entry = content["llama1b_aug"]
    assert list(entry)[:2] == ["num_seeds", "datasets"]
    assert list(entry["datasets"]) == ["gsm8k", "gsm8k-hard"]
    assert list(entry["datasets"]["gsm8k"])[:4] == ["accuracy_mean", "accuracy_std", "forward_passes_mean", "forward_passes_std"]
    assert entry["datasets"]["gsm8k-hard"]["accuracy_mean"] == pytest.approx(0.342)
    assert entry["model_name"] == "KAVA-LLaMA-3.2-1B"
    assert read_aggregates(tmp_path / "aggregated_results.yaml") == aggregates == read_aggregates(tmp_path / "a.json")
    assert [(path.name, name) for path, name, _ in find_aggregates(tmp_path)[0]] == [("aggregated_results.yaml", "llama1b_aug")]


def test_entry_is_named_by_the_run_else_by_the_user():
    assert entry_name(runs(make_result()), "mine") == "llama1b_aug"
    assert entry_name(runs(make_result(name=None)), "mine") == "mine"
    with pytest.raises(UserError, match="--model_name"):
        entry_name(runs(make_result(name=None)), None)


def test_configurations_that_differ_are_refused_by_key_and_value():
    other = make_result(123, overrides={"training.learning_rate": 0.002, "rkv.lambda": 0.3})
    expected = (
        r"run0 and run1 are runs of different configurations.*rkv.lambda: 0.1 against 0.3; training.learning_rate: 0.0008 against 0.002"
    )
    with pytest.raises(UserError, match=expected):
        combine(runs(make_result(42), other))


def test_a_result_that_lacks_a_later_setting_is_of_the_same_configuration():
    older = make_result(1)
    del older.run.config["rkv"]["importance"]
    assert combine(runs(older, make_result(2))).num_seeds == 2


def test_another_name_is_another_configuration():
    with pytest.raises(UserError, match="run.name: 'llama1b_aug' against 'mini'"):
        combine(runs(make_result(42), make_result(123, name="mini")))


def test_a_seed_twice_is_refused():
    with pytest.raises(UserError, match="run0 and run1 both hold seed 42"):
        combine(runs(make_result(42), make_result(42, correct=3)))


def test_times_of_other_batch_sizes_are_not_averaged():
    results = [make_result(42), make_result(123), make_result(456)]
    for result, size in zip(results, (32, None, 8), strict=True):
        result.provenance |= {} if size is None else {"batch_size": size}
    combine(runs(*results[:2]))
    with pytest.raises(UserError, match="'gsm8k' was answered in batches of 8 and of 32, whose times have no mean"):
        combine(runs(*results))


@pytest.mark.parametrize("change", [{"data_fingerprint": "ffff"}, {"total": 1000}])
def test_other_questions_are_refused(change):
    with pytest.raises(UserError, match=r"'gsm8k' is not the same data in run0 \(1319 questions, d41d.*and run1"):
        combine(runs(make_result(42), make_result(123, **change)))


def trained_on(seed, fingerprint):
    result = make_result(seed)
    return result.model_copy(update={"provenance": {"training": {"data": {"fingerprint": fingerprint}}}})


def test_seeds_trained_on_different_data_under_one_name_are_refused():
    assert combine(runs(trained_on(42, "a"), trained_on(123, "a"))).num_seeds == 2
    with pytest.raises(UserError, match=r"run0 and run1 were trained on different data under one name, 'whynlp/gsm8k-aug' \(a and b\)"):
        combine(runs(trained_on(42, "a"), trained_on(123, "b")))


def test_an_interval_over_seeds_stays_within_what_an_accuracy_can_be():
    summary = combine(runs(make_result(42, correct=900, total=1000), make_result(123, correct=990, total=1000))).datasets["gsm8k"]
    assert summary.accuracy_ci95 == [pytest.approx(0.945 - 12.706204736 * 0.0636396103 / 2**0.5), 1.0]


def test_a_directory_with_results_of_two_checkpoints_is_refused(tmp_path):
    for name, manifest in (("gsm8k", "a"), ("svamp", "b")):
        result = make_result(42, name).model_copy(update={"checkpoint": CheckpointInfo(path=f"run/{manifest}", manifest=manifest)})
        write_result(result_path(tmp_path, name), result)
    with pytest.raises(UserError, match=r"mixes results of two checkpoints \(run/a and run/b\)"):
        read_run(tmp_path, ["gsm8k", "svamp"])


def test_the_data_sets_of_a_run_are_those_that_it_recorded(tmp_path):
    """Whatever YAML makes of their names: quoted, folded, or like a truth value."""
    assert recorded_datasets(tmp_path) == ["gsm8k", "gsm8k-hard", "svamp"]
    sets = {"2024": "a.jsonl", "on": "b.jsonl", "gsm8k": "/a folder/" + "with a long name/" * 12 + "test.jsonl"}
    content = load_config(None, {"evaluation.datasets": sets}).to_dict()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    assert recorded_datasets(tmp_path) == list(sets)


def test_a_directory_holds_one_run(tmp_path):
    write_result(result_path(tmp_path, "gsm8k"), make_result(42))
    write_result(result_path(tmp_path, "svamp"), make_result(43, "svamp"))
    with pytest.raises(UserError, match="mixes seeds 42 and 43"):
        read_run(tmp_path, ["gsm8k", "svamp"])
    write_result(result_path(tmp_path, "svamp"), make_result(42, "gsm8k"))
    with pytest.raises(UserError, match="holds data set 'gsm8k', not 'svamp'"):
        read_run(tmp_path, ["gsm8k", "svamp"])


def test_differences_are_dotted_and_keep_absent_keys():
    a = {"x": {"y": 1, "z": [1, 2]}, "same": 3}
    b = {"x": {"y": 2, "z": [1, 2]}, "same": 3, "new": {"k": 0}}
    assert differences([a, b, a]) == {"x.y": [1, 2, 1], "new.k": [ABSENT, 0, ABSENT]}
    assert differences([a]) == {}


def test_aggregates_of_results_that_are_older_than_the_checkpoint_are_refused(tmp_path):
    best = tmp_path / "seed_42" / "best_checkpoint"
    best.mkdir(parents=True)
    (best / "weights").write_text("old")
    seal(best)
    measured = CheckpointInfo(path="x", manifest=checkpoint_hash(best))
    run = SeedResults(str(tmp_path / "seed_42"), {"gsm8k": make_result(42).model_copy(update={"checkpoint": measured})})
    write_aggregates({"llama1b_aug": combine([run])}, None, tmp_path / "aggregated_results.yaml")
    assert len(find_aggregates(tmp_path)[0]) == 1
    (best / "weights").write_text("trained again")
    seal(best)
    with pytest.raises(UserError, match=r"seed_42 was retrained since; evaluate it and aggregate the seeds again"):
        find_aggregates(tmp_path)


def test_a_seed_is_looked_for_beside_the_aggregate(tmp_path, monkeypatch):
    """A colleague's outputs: the recorded path is relative to the directory in which they were aggregated."""
    for person, text in (("colleague", "theirs"), ("me", "mine")):
        best = tmp_path / person / "outputs" / "kava" / "seed_42" / "best_checkpoint"
        best.mkdir(parents=True)
        (best / "weights").write_text(text)
        seal(best)
        measured = make_result(42).model_copy(update={"checkpoint": CheckpointInfo(path="x", manifest=checkpoint_hash(best))})
        run = SeedResults("outputs/kava/seed_42", {"gsm8k": measured})
        write_aggregates({"kava": combine([run])}, None, tmp_path / person / "outputs" / "kava" / "aggregated_results.yaml")
    monkeypatch.chdir(tmp_path / "me")
    assert [len(find_aggregates(place)[0]) for place in ("outputs", tmp_path)] == [1, 2]
    (best / "weights").write_text("trained again")
    seal(best)
    monkeypatch.chdir(tmp_path)
    found, (problem,) = find_aggregates(".")
    assert [file.parts[0] for file, _, _ in found] == ["colleague"]
    assert "me/outputs/kava/seed_42 was retrained since" in problem


def test_a_broken_aggregate_does_not_hide_the_others(tmp_path):
    for name in ("a", "b"):
        write_aggregates({"llama1b_aug": combine(runs(make_result()))}, None, tmp_path / name / "aggregated_results.yaml")
    (tmp_path / "a" / "aggregated_results.yaml").write_text("llama1b_aug: 3")
    found, (problem,) = find_aggregates(tmp_path)
    assert [file.parent.name for file, _, _ in found] == ["b"]
    assert problem.startswith(f"aggregate {tmp_path}/a/aggregated_results.yaml, entry 'llama1b_aug' is broken")


def test_entries_of_one_name_have_their_folders(tmp_path):
    files = [tmp_path / folder / "aggregated_results.yaml" for folder in ("short/all/kava", "t1/all/kava", "t1/all/codi")]
    assert distinct(["kava", "kava", "codi"], files, tmp_path) == ["short/all/kava", "t1/all/kava", "codi"]


def test_quick_tests_and_cut_evaluations_are_left_out_and_said(tmp_path):
    part = make_result(42, correct=4, total=20, overrides={"evaluation.max_samples": 20})
    write_aggregates({"part": combine(runs(part))}, None, tmp_path / "part" / "aggregated_results.yaml")
    with pytest.raises(
        UserError, match="no full evaluation below .*part on gsm8k: first 20 questions; --include_partial includes it, marked"
    ):
        find_aggregates(tmp_path)
    write_aggregates({"whole": combine(runs(make_result()))}, None, tmp_path / "whole" / "aggregated_results.yaml")
    found, (problem,) = find_aggregates(tmp_path)
    assert [name for _, name, _ in found] == ["whole"]
    assert "part on gsm8k: first 20 questions" in problem
    found, problems = find_aggregates(tmp_path, include_partial=True)
    assert ([name for _, name, _ in found], problems) == (["part", "whole"], [])


def test_aggregates_of_earlier_versions_are_read(tmp_path):
    content = combine(runs(make_result())).model_dump(mode="json", exclude={"trained_on": True, "runs": {"__all__": {"checkpoint"}}})
    (tmp_path / "aggregated_results.yaml").write_text(yaml.safe_dump({"llama1b_aug": content}))
    ((_, name, aggregate),) = find_aggregates(tmp_path)[0]
    assert (name, aggregate.trained_on, aggregate.runs[0].checkpoint) == ("llama1b_aug", None, None)


def test_broken_aggregates_are_named(tmp_path):
    path = tmp_path / "aggregated_results.yaml"
    for text, message in (("{}", "is empty"), ("llama1b_aug: 3", "entry 'llama1b_aug' is broken"), ("a: [", "not valid YAML")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            find_aggregates(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"no aggregated_results.yaml below"):
        find_aggregates(tmp_path)
    with pytest.raises(UserError, match="is not a directory"):
        find_aggregates(tmp_path / "absent")


def test_settings_that_a_resume_may_change_do_not_keep_seeds_apart():
    resumed = make_result(123, overrides={"training.max_bad_batches": 1, "training.save_total_limit": 2})
    assert combine(runs(make_result(42), resumed)).num_seeds == 2
