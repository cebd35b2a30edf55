"""Results of several seeds, collected for their plan: a seed that was resumed with other settings of bookkeeping belongs to it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.result_files import GUIDE_CONFIG, make_result, make_row
from kava.config import load_config
from kava.config.fingerprint import MAY_CHANGE_ON_RESUME, former_fingerprint
from kava.experiment.child_processes import Children
from kava.experiment.collect import collect, write_aggregate
from kava.experiment.multi_seed import Plan, _Seed, make_plan
from kava.report.aggregate_file import read_aggregates
from kava.report.runs import find_runs
from kava.results import BEST_CHECKPOINT, RUN_CONFIG, TRAINING_DONE, result_path, rows_path, write_result, write_rows, write_text

OTHER = {"training.max_bad_batches": 2, "training.num_workers": 3, "training.save_total_limit": 1, "evaluation.batch_size": 8}


def plan_of(root: Path, **overrides: Any) -> Plan:
    return make_plan(GUIDE_CONFIG, "llama1b_aug", root, [42, 123], overrides, datasets=["gsm8k"])


def write_seed(directory: Path, seed: int, *, earlier_version: bool = False, **overrides: Any) -> None:
    """One seed's result; `earlier_version`: with the fingerprint that an earlier version gave it."""
    result = make_result(seed, correct=1, total=1, overrides=overrides)
    if earlier_version:
        fingerprint = former_fingerprint(load_config(GUIDE_CONFIG, overrides).to_dict())
        result = result.model_copy(update={"run": result.run.model_copy(update={"config_fingerprint": fingerprint})})
    path = result_path(directory, "gsm8k")
    write_result(path, result.model_copy(update={"answers": write_rows(rows_path(path), [make_row()])}))


def test_the_settings_are_those_that_a_resume_may_change() -> None:
    assert OTHER.keys() == MAY_CHANGE_ON_RESUME.keys()


@pytest.mark.parametrize("earlier_version", [False, True])
@pytest.mark.parametrize("key", OTHER)
def test_a_seed_resumed_with_another_setting_is_collected(tmp_path: Path, key: str, earlier_version: bool) -> None:
    plan = plan_of(tmp_path / "run")
    write_seed(plan.seed_dir(42), 42)
    write_seed(plan.seed_dir(123), 123, earlier_version=earlier_version, **{key: OTHER[key]})
    group, problems = collect(plan, "run")
    assert problems == []
    assert group is not None
    assert group.aggregate.seeds == [42, 123]
    (found,) = find_runs(tmp_path).groups
    assert found.aggregate == group.aggregate.model_copy(update={"runs": found.aggregate.runs})


def test_a_seed_of_another_configuration_is_left_out(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    write_seed(plan.seed_dir(42), 42)
    write_seed(plan.seed_dir(123), 123, **{"training.learning_rate": 1e-3})
    group, problems = collect(plan, "out")
    assert group is None
    why = "(training.learning_rate 0.001, not 0.0008)"
    assert f"seed_123/results_gsm8k.yaml is of another configuration than llama1b_aug's {why}; run it again" in problems[0]


def test_an_aggregate_of_an_earlier_version_gives_way_to_no_part_of_it(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    for seed in plan.seeds:
        write_seed(plan.seed_dir(seed), seed, earlier_version=True, **OTHER)
    group, _ = collect(plan, "out")
    part, _ = collect(replace(plan, seeds=[42]), "out")
    assert group is not None
    assert part is not None
    older = former_fingerprint(load_config(GUIDE_CONFIG, OTHER).to_dict())
    aggregate = group.aggregate.model_copy(update={"config_fingerprint": older})
    path = write_aggregate(plan, replace(group, aggregate=aggregate))
    write_aggregate(plan, part)
    assert read_aggregates(path)[plan.name].seeds == [42, 123]


@pytest.mark.parametrize("earlier_version", [False, True])
def test_a_finished_training_with_other_bookkeeping_is_not_trained_again(tmp_path: Path, earlier_version: bool) -> None:
    plan, config = plan_of(tmp_path), load_config(GUIDE_CONFIG, OTHER)
    directory = plan.seed_dir(42)
    (directory / BEST_CHECKPOINT).mkdir(parents=True)
    fingerprint = former_fingerprint(config.to_dict()) if earlier_version else config.fingerprint()
    write_text(directory / TRAINING_DONE, json.dumps({"config_fingerprint": fingerprint}))
    write_text(directory / RUN_CONFIG, json.dumps(config.to_dict()))
    seed = _Seed(plan, 42, Children(), {}, print)
    assert seed._is_trained()
