"""`run_multi_seed.py` as typed, on real runs of a tiny model: layout, skipping, resuming, failures, signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from helpers.faulty_runs import assert_same_ending, ending
from helpers.forked_python import python
from kava.results import read_result, read_rows, rows_path
from kava.runtime.lock import locked

ROOT = Path(__file__).parents[2]
CONFIG = {
    "method": "kava",
    "model": {"name": "builtin:mini", "mini": {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "num_kv_heads": 1, "pretrain_steps": 2}},
    "lora": {"enabled": False},
    "latent": {"num_tokens": 4, "num_iterations": 1},
    "dataset": {"name": "builtin:mini", "mini": {"modulus": 5, "max_steps": 2, "num_train": 64, "num_eval": 16}},
    "training": {"max_steps": 4, "batch_size": 8, "eval_steps": 4, "save_steps": 2, "logging_steps": 1},
    "evaluation": {"datasets": {"test": "builtin:mini/test"}, "batch_size": 16, "max_new_tokens": 8, "validation_samples": 8},
    "system": {"mixed_precision": "no", "num_threads": 1},
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def start(workplace: Path, *flags: str, program: str | None = None) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "KAVA_CACHE": str(workplace / "cache")}
    words = [program or python(), str(ROOT / "run_multi_seed.py"), "--config", "tiny", *flags]
    return subprocess.Popen(words, cwd=workplace, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(workplace: Path, *flags: str, code: int = 0) -> str:
    process = start(workplace, *flags)
    text, _ = process.communicate(timeout=600)
    assert process.returncode == code, text
    return text


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A directory with `configs/tiny.yaml`, where seeds 1 and 2 have been run side by side."""
    place = tmp_path_factory.mktemp("work")
    (place / "configs").mkdir()
    (place / "configs" / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    (place / "first.txt").write_text(run(place, "--seeds", "1", "2", "--parallel", "2"))
    return place


def test_layout_and_aggregate_are_the_guides(workplace):
    output = workplace / "outputs" / "tiny_multi_seed"
    for seed in (1, 2):
        assert (output / f"seed_{seed}" / "best_checkpoint").is_dir()
        path = output / f"seed_{seed}" / "results_test.yaml"
        result = read_result(path)
        assert (result.run.seed, result.run.name, result.metrics.total) == (seed, "tiny", 16)
        rows = read_rows(rows_path(path))
        assert sum(row.correct for row in rows) == result.metrics.correct
        assert sum(row.forward_passes for row in rows) / 16 == pytest.approx(result.metrics.forward_passes)
    content = yaml.safe_load((output / "aggregated_results.yaml").read_text())
    assert content == json.loads((output / "aggregated_results.json").read_text())
    assert content["tiny"]["num_seeds"] == 2
    values = [read_result(output / f"seed_{seed}" / "results_test.yaml").metrics.accuracy for seed in (1, 2)]
    assert content["tiny"]["datasets"]["test"]["accuracy_mean"] == pytest.approx(sum(values) / 2)
    assert "aggregated: outputs/tiny_multi_seed/aggregated_results.yaml" in (workplace / "first.txt").read_text()


def test_what_is_done_is_skipped_and_what_is_broken_is_done_again(workplace):
    output = workplace / "outputs" / "tiny_multi_seed"
    before = {path: path.stat().st_mtime_ns for path in output.rglob("seed_*/**/*") if path.is_file() and path.name != ".lock"}
    (output / "aggregated_results.yaml").unlink()
    text = run(workplace, "--seeds", "1", "2")
    assert "training is done" in text
    assert "evaluating" not in text
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert (output / "aggregated_results.yaml").exists()

    broken = output / "seed_2" / "results_test.yaml"
    whole = yaml.safe_load(broken.read_text())["metrics"]
    broken.write_text(broken.read_text()[:200])
    text = run(workplace, "--seeds", "1", "2")
    assert text.count("evaluating") == 1
    again = yaml.safe_load(broken.read_text())["metrics"]
    assert (again["correct"], again["forward_passes"]) == (whole["correct"], whole["forward_passes"])

    # A trial on a few questions may not replace the whole result; where it was before it, it is no evaluation of all of them.
    evaluate = [python(), str(ROOT / "evaluate.py"), "--checkpoint_dir", str(output / "seed_2"), "--eval_dataset", "test"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "KAVA_CACHE": str(workplace / "cache")}
    trial = [*evaluate, "--max_samples", "4"]
    refused = subprocess.run(trial, cwd=workplace, env=environment, capture_output=True, text=True, check=False)
    assert (refused.returncode, "with --max_samples name another file with --output" in refused.stderr) == (2, True)
    assert read_result(broken).metrics.total == 16
    broken.unlink()
    subprocess.run(trial, cwd=workplace, env=environment, capture_output=True, check=True)
    assert read_result(broken).metrics.total == 4
    text = run(workplace, "--seeds", "1", "2")
    assert text.count("evaluating") == 1
    assert read_result(broken).metrics.total == 16


def test_a_lost_best_checkpoint_is_made_again_and_nothing_is_evaluated_anew(workplace):
    best = workplace / "outputs" / "tiny_multi_seed" / "seed_1" / "best_checkpoint"
    manifest = (best / "manifest.json").read_bytes()
    shutil.rmtree(best)
    text = run(workplace, "--seeds", "1", "2")
    assert text.count("training continues") == 1
    assert "evaluating" not in text
    assert (best / "manifest.json").read_bytes() == manifest


def test_another_configuration_in_the_same_place_is_refused_and_nothing_is_lost(workplace):
    marker = workplace / "outputs" / "tiny_multi_seed" / "seed_1" / "training_done.json"
    before = marker.read_text()
    text = run(workplace, "--seeds", "1", "--training.learning_rate", "0.5", code=1)
    why = f"training.learning_rate {CONFIG['training'].get('learning_rate', 0.0008)}, not 0.5"
    assert f"holds a finished run of another configuration ({why}); choose another --output_dir" in text
    assert marker.read_text() == before


def test_a_failed_seed_shows_its_log_and_does_not_lose_the_others(workplace):
    output = workplace / "outputs" / "tiny_multi_seed"
    (output / "seed_3" / "config.yaml").mkdir(parents=True)
    (output / "aggregated_results.yaml").unlink(missing_ok=True)
    text = run(workplace, "--seeds", "3", "1", code=1)
    assert "seed 3: train: exit code 2" in text
    assert "cannot write" in text  # the end of the seed's own log
    assert "seed 1: test" in text
    assert "not aggregated" in text
    assert not (output / "aggregated_results.yaml").exists()


def test_a_directory_in_use_is_left_alone(workplace):
    with locked(workplace / "outputs" / "tiny_multi_seed" / "seed_1"):
        assert f"is in use by another run (process {os.getpid()}: " in run(workplace, "--seeds", "1", code=1)


STEPS = 160
LONG = ("--seeds", "5", "--training.max_steps", str(STEPS), "--training.eval_steps", str(STEPS))


def until(workplace: Path, output_dir: str, step: int, program: str | None = None) -> "subprocess.Popen[str]":
    """Start the long run, and return when its training has come to a step."""
    process = start(workplace, *LONG, "--output_dir", output_dir, program=program)
    log = workplace / output_dir / "seed_5" / "train.log"
    deadline = time.monotonic() + 300
    while not (log.exists() and f"step {step}/{STEPS}" in log.read_text()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return process


@pytest.fixture(scope="module")
def cut(workplace):
    """The long run with SIGUSR1 in its first steps, and the same command again; returns its directory and what both said."""
    process = until(workplace, "cut", 3)
    process.send_signal(signal.SIGUSR1)
    first, _ = process.communicate(timeout=300)
    assert process.returncode == 85, first  # the trainer's "saved, start me again"
    assert not (workplace / "cut" / "seed_5" / "training_done.json").exists()
    assert not (workplace / "cut" / "aggregated_results.yaml").exists()
    return workplace / "cut", run(workplace, *LONG, "--output_dir", "cut")


def test_a_signal_reaches_the_training_and_the_same_command_goes_on(cut):
    directory, text = cut
    assert "training continues" in text
    log = directory / "seed_5" / "train.log"
    steps = [int(line.split("step ")[1].split("/")[0]) for line in log.read_text().splitlines() if "s/step" in line]
    assert sorted(set(steps)) == list(range(1, STEPS + 1))
    assert yaml.safe_load((directory / "aggregated_results.yaml").read_text())["tiny"]["seeds"] == [5]


@pytest.mark.faults
def test_killed_with_its_trainer_the_same_command_ends_in_the_same_weights(workplace, cut):
    """SIGKILL to all, as from a node that dies, at another step than the signal of the run that it is compared with."""
    # Its trainer shall be a child: no fork of another process.
    process = until(workplace, "killed", 40, program=sys.executable)
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    assert len(family) >= 2
    for member in family:
        member.kill()
    assert process.wait() == -signal.SIGKILL
    psutil.wait_procs(family)
    run_dir = workplace / "killed" / "seed_5"
    assert not (run_dir / "training_done.json").exists()
    assert "training continues" in run(workplace, *LONG, "--output_dir", "killed")
    assert_same_ending(run_dir, ending(cut[0] / "seed_5"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config", "tinny"], "did you mean 'tiny'"),
        (["--seeds", "1", "1"], "each once"),
        (["--datasets", "tset"], "did you mean 'test'"),
        (["--datasets", "x; rm -rf ~"], "neither in the configuration's evaluation.datasets nor a benchmark or a path"),
        (["--parallel", "0"], "at least 1"),
        (["--training.seed", "3"], "--seeds"),
        (["--training.batch_sise", "3"], "did you mean '--training.batch_size'"),
    ],
)
def test_bad_input_is_one_line(workplace, flags, message):
    before = sorted(workplace.rglob("*"))
    text = run(workplace, *flags, code=2)
    assert message in text
    assert text.count("\n") == 1
    assert sorted(workplace.rglob("*")) == before
