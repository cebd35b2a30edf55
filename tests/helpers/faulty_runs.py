"""Runs that are killed, and the comparison of their end with that of a run that was not."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers.signals import listen

REPOSITORY = Path(__file__).parents[2]
# One epoch is 5 optimizer steps; validation, checkpoints and log lines come at steps of their own, so that every order of them occurs.
TINY = [
    "--model.mini.pretrain_steps", "60", "--model.mini.hidden_size", "32", "--model.mini.num_layers", "2", "--dataset.mini.modulus", "2",
    "--dataset.mini.num_train", "38", "--dataset.mini.num_eval", "24", "--dataset.mini.max_steps", "2",
    "--lora.enabled", "true", "--lora.r", "4",
    "--training.max_steps", "11", "--training.eval_steps", "4", "--training.save_steps", "3", "--training.logging_steps", "2",
    "--training.batch_size", "4", "--training.gradient_accumulation_steps", "2",
    "--training.save_total_limit", "2", "--evaluation.validation_samples", "24",
    "--evaluation.max_new_tokens", "8",
]  # fmt: skip
# What a clock decides, and no seed.
CLOCK = ("seconds_per_question", "runtime", "per_second")


class ForkServer:
    """The process of `fork_server.py`, and the commands it runs."""

    def __init__(self, cache: Path) -> None:
        environment = os.environ | {"KAVA_CACHE": str(cache), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY / "src")}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=REPOSITORY, preexec_fn=listen,
        )  # fmt: skip
        assert self._answer() == "ready"

    def train(self, run: Path, *words: str, code: int | None = 0, log: Path | None = None, **request: Any) -> dict[str, Any]:
        """`kava train` on the tiny configuration; checks its exit code, and that it never ends in a traceback."""
        latents = [] if "icot" in words else ["--latent.num_tokens", "4"]
        command = ["train", "--config", "mini", "--seed", "7", "--output_dir", str(run), *TINY, *latents, *words]
        return self.command(log or run.with_suffix(".log"), *command, code=code, **request)

    def command(self, log: Path, *words: str, code: int | None = 0, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        log.parent.mkdir(parents=True, exist_ok=True)
        self.process.stdin.write(json.dumps({"words": words, "output": str(log), **request}) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._answer())
        text = log.read_text()
        # A worker of a run that was killed while it fetched a batch finds nobody to hand it to, and torch prints that.
        assert "Traceback" not in text or answer["code"] == -signal.SIGKILL, text
        assert code is None or answer["code"] == code, f"exit code {answer['code']} and not {code}: {text[-3000:]}"
        return answer

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def newest(run: Path) -> Path:
    """The checkpoint with the highest step."""
    return max(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def ending(run: Path) -> dict[str, Any]:
    """Everything a run leaves that no clock decides: weights, optimizer, schedule, generators, logged numbers, best metric."""
    last = newest(run)
    weights = {
        str(path.relative_to(run)): path.read_bytes() for place in (last, run / "best_checkpoint") for path in place.glob("*.safetensors")
    }
    states = {name: torch.load(last / name, weights_only=False) for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")}
    state = json.loads((last / "trainer_state.json").read_text())
    history = [{key: value for key, value in entry.items() if not key.endswith(CLOCK)} for entry in state["log_history"]]
    best = json.loads((run / "best_checkpoint" / "kava_config.json").read_text())
    done = json.loads((run / "training_done.json").read_text())
    return {
        "weights": weights,
        "states": flat(states),
        "history": history,
        "best": (state["best_metric"], state["best_global_step"], best["step"], best["validation"]["eval_accuracy"]),
        "done": {key: done[key] for key in done if key != "seconds"},
        "train.log": log_lines(run / "train.log"),
    }


def log_lines(path: Path) -> list[str]:
    """The lines of a log without dates and durations."""
    return [re.sub(r", (examples/s |seconds_per_question|[\d.e+-]+ s/step).*", "", line[20:]) for line in path.read_text().splitlines()]


def flat(value: Any) -> Any:
    """Tensors as bytes, so that == compares every bit."""
    if isinstance(value, Tensor):
        return (str(value.dtype), tuple(value.shape), value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    if isinstance(value, dict):
        return {key: flat(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [flat(entry) for entry in value]
    return value.tolist() if hasattr(value, "tolist") else value


def assert_same_ending(run: Path, reference: dict[str, Any]) -> None:
    """Fail by naming the part that differs."""
    found = ending(run)
    for part, expected in reference.items():
        if isinstance(expected, dict):
            assert found[part].keys() == expected.keys(), part
            different = [name for name in expected if found[part][name] != expected[name]]
            assert not different, f"{part}: {different}"
        else:
            assert found[part] == expected, part
