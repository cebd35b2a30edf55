"""Two processes (gloo, CPU) do what one does with the same global batch: losses step by step, and counts of an evaluation."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.forked_python import python
from kava.config import load_config
from kava.evaluate.evaluate import Request, evaluate
from kava.results import read_result, read_rows, rows_path
from kava.runtime import processes
from kava.train.train import train

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
# 70 examples in global batches of 16, two to a step: the epoch's last batch holds 6, so that one process has none of its own.
TINY: dict[str, Any] = {
    "model.mini.pretrain_steps": 10, "dataset.mini.num_train": 70, "training.max_steps": 6, "training.gradient_accumulation_steps": 2,
    "training.logging_steps": 1, "training.eval_steps": 6, "training.save_steps": 6, "evaluation.validation_samples": 7,
    "evaluation.max_new_tokens": 6,
}  # fmt: skip
QUESTIONS = 21

pytestmark = pytest.mark.slow


def launch(command: list[str], *arguments: str, cache: Path, program: str | None = None) -> str:
    """Standard output of a launcher and its processes, forks unless a program is named."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"),
        "KAVA_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    words = [program or python(), *command, *arguments]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def history(run: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads((run / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    return content


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The same run in two processes and in one; the base is made by the first, from within a launched run."""
    place = tmp_path_factory.mktemp("processes")
    cache = place / "cache"
    options = [word for key, value in TINY.items() for word in (f"--{key}", str(value))]
    config = ["train.py", "--config", "configs/mini.yaml", "--training.batch_size", "8", *options]
    said = launch(TORCHRUN, *config, "--output_dir", str(place / "two"), cache=cache)
    assert said.count("trained 6 steps") == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAVA_CACHE", str(cache))
        train(load_config(ROOT / "configs/mini.yaml", TINY | {"training.batch_size": 16}), place / "one", quiet=True)
    return place / "one", place / "two", cache


def test_losses_are_those_of_one_process(runs: tuple[Path, Path, Path]) -> None:
    one, two, _ = runs
    names = (
        "loss",
        "student_ce",
        "teacher_ce",
        "codi",
        "kv",
        "grad_norm",
        "eval_accuracy",
        "eval_forward_passes",
        "learning_rate",
        "epoch",
    )
    compared = 0
    for alone, together in zip(history(one), history(two), strict=True):
        for name in names & alone.keys():
            assert together[name] == pytest.approx(alone[name], rel=1e-5, abs=1e-12), (alone["step"], name)
            compared += 1
    assert compared >= 6 * 7 + 2
    # Two epochs: steps 3 and 6 hold the short batches.
    assert history(one)[-2]["epoch"] == pytest.approx(2.0)


def test_a_shared_evaluation_counts_each_question_once(runs: tuple[Path, Path, Path]) -> None:
    """By Python as every user starts it."""
    _, two, cache = runs
    arguments = ["--checkpoint", str(two / "best_checkpoint"), "--dataset", "test", "--max_samples", str(QUESTIONS)]
    written = ["--output", str(two / "shared.yaml")]
    said = launch(ACCELERATE, "evaluate.py", *arguments, *written, cache=cache, program=sys.executable)
    assert said.count("written: ") == 1
    alone = evaluate(Request(str(two / "best_checkpoint"), "test", max_samples=QUESTIONS), two / "alone.yaml")
    shared = read_result(two / "shared.yaml")
    timeless = {"seconds_per_question": 0.0}
    assert shared.metrics.model_copy(update=timeless) == alone.metrics.model_copy(update=timeless)
    assert shared.metrics.total == QUESTIONS
    assert read_rows(rows_path(two / "shared.yaml")) == read_rows(rows_path(two / "alone.yaml"))


@pytest.mark.parametrize("items", [0, 1, 2, 5, 6])
def test_shares_are_exact(items: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        shares.append(list(processes.deal(range(items))))
    assert sorted(item for share in shares for item in share) == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_child_of_a_launched_run_is_a_run_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with processes.alone():
        assert (processes.rank(), processes.world_size()) == (0, 1)
    assert (processes.rank(), processes.world_size()) == (1, 2)
