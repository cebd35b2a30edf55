"""One seed of a plan: which finished training is its own, and what its steps leave behind."""

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest
from rich.console import Console

from helpers.result_files import GUIDE_CONFIG
from kava.config import load_config
from kava.errors import UserError
from kava.experiment.child_processes import Children
from kava.experiment.multi_seed import Plan, SeedOutcome, _Seed, _StepError, exit_code, make_plan, run_plans
from kava.results import BEST_CHECKPOINT, RUN_CONFIG, TRAINING_DONE, write_text
from kava.runtime.lock import locked


def plan_of(root: Path) -> Plan:
    return make_plan(GUIDE_CONFIG, "llama1b_aug", root, [42], {}, datasets=["gsm8k"])


def test_a_finished_training_of_another_configuration_is_refused_with_the_settings_that_differ(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    directory, config = plan.seed_dir(42), load_config(GUIDE_CONFIG, {"loss.alpha2_kv": 3, "training.seed": 42, "training.num_workers": 2})
    (directory / BEST_CHECKPOINT).mkdir(parents=True)
    write_text(directory / TRAINING_DONE, json.dumps({"config_fingerprint": config.fingerprint()}))
    write_text(directory / RUN_CONFIG, json.dumps(config.to_dict()))
    with pytest.raises(UserError, match=r"another configuration \(loss\.alpha2_kv 3\.0, not 1\.0\); choose another --output_dir"):
        _Seed(plan, 42, Children(), {}, print)._is_trained()
    (directory / RUN_CONFIG).unlink()
    with pytest.raises(UserError, match="another configuration; choose another --output_dir"):
        _Seed(plan, 42, Children(), {}, print)._is_trained()


def test_a_step_that_failed_before_a_signal_gives_no_exit_code(tmp_path: Path) -> None:
    plan, outcome = plan_of(tmp_path), SeedOutcome(42, tmp_path)
    seed = _Seed(plan, 42, Children(), {}, print)
    seed.directory.mkdir()
    seed.inherit = ()
    with pytest.raises(_StepError):
        seed._step(outcome, "no-such-command", [])
    assert (outcome.problem, exit_code([outcome], None)) == ("no-such-command: exit code 2", 1)
    assert exit_code([outcome], signal.SIGUSR1) == 128 + signal.SIGUSR1


@pytest.mark.parametrize("place", ["full disk", "closed pipe"])
def test_a_line_that_cannot_be_printed_does_not_end_the_runner(place: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    plan, file = plan_of(tmp_path), os.fdopen(os.open("/dev/full", os.O_WRONLY) if place == "full disk" else writer, "w")
    plan.seed_dir(42).mkdir()
    try:
        with locked(plan.seed_dir(42)):
            (outcome,), stopped = run_plans([plan], 1, Console(file=file).print)
    finally:
        with contextlib.suppress(OSError):  # what could not be written
            file.close()
    assert stopped is None
    assert "is in use by another run" in str(outcome.problem)
