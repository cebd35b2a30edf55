"""Sums of the losses between two log lines."""

import time
from typing import Any

from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class LossMeter(TrainerCallback, ExportableState):
    """Sums of the loss and its terms since the last log line; part of the Trainer's state, so that a resumed run logs the same."""

    def __init__(self, sums: dict[str, float] | None = None, examples: int = 0) -> None:
        self.sums: dict[str, Any] = dict(sums or {})
        self.examples = examples
        self.timed, self.seconds, self.begun, self.before = 0, 0.0, 0.0, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock; it stands still in between, during validation and saving."""
        self.begun, self.before = time.perf_counter(), self.examples

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self.seconds += time.perf_counter() - self.begun
        self.timed += self.examples - self.before

    def take_throughput(self) -> float | None:
        """Examples per second of all processes since the last call; None before the first step."""
        throughput = self.timed / self.seconds if self.seconds else None
        self.timed, self.seconds = 0, 0.0
        return throughput

    def add(self, values: dict[str, Tensor], examples: int) -> None:
        """Add per-example values; they stay on their device until the next log line."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().double().sum()
        self.examples += examples

    def take(self) -> dict[str, float]:
        """Means since the last call."""
        means = {name: float(total) / self.examples for name, total in self.sums.items()} if self.examples else {}
        self.sums, self.examples = {}, 0
        return means

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {"sums": {name: float(total) for name, total in self.sums.items()}, "examples": self.examples}, "attributes": {}}
