"""Sums of the losses between two log lines."""

from math import isfinite
from typing import Any

import torch
from torch import Tensor

from kava.runtime import processes
from kava.train.guard import RecordedBatch


class LossMeter:
    """Sums of the loss and its terms since the last log line. Checkpoints store them, so that a resumed run logs the same values.

    Args:
        sums: sum of every loss over all examples.
        examples: number of examples in the sums.
    """

    def __init__(self, sums: dict[str, float] | None = None, examples: int = 0) -> None:
        # A checkpoint's file may have been edited: what is no number is refused here, not in the next step.
        self.sums: dict[str, Any] = {name: float(total) for name, total in (sums or {}).items()}
        self.examples = int(examples)
        self.timed, self.seconds = 0, 0.0

    def add(self, seen: list[RecordedBatch], examples: int) -> None:
        """Add a step's losses, summed over all processes, so that every process has the numbers of the whole run.

        They stay on their device until the next log line.

        Args:
            seen: the micro-batches of this process.
            examples: number of examples in the step, over all processes.
        """
        names = list(seen[0].values)
        sums = torch.stack([torch.stack([one.values[name].double().sum() for one in seen]).sum() for name in names])
        if processes.world_size() > 1:
            torch.distributed.all_reduce(sums)
        for name, value in zip(names, sums, strict=True):
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.examples += examples

    def time(self, examples: int, seconds: float) -> None:
        """Add the duration of a step, without validation and saving."""
        self.timed += examples
        self.seconds += seconds

    def take(self, norm: Tensor, rate: float) -> dict[str, float]:
        """The log entry since the last call: mean losses (none if every step was skipped) and the throughput of all processes.

        Args:
            norm: gradient norm of the last step.
            rate: learning rate of the last step.
        """
        means = {name: float(total) / self.examples for name, total in self.sums.items()} if self.examples else {}
        throughput = {"examples_per_second": self.timed / self.seconds} if self.timed and self.seconds else {}
        self.sums, self.examples, self.timed, self.seconds = {}, 0, 0, 0.0
        entry = {"loss": means["loss"]} if means else {}
        entry |= {name: value for name, value in {"grad_norm": float(norm), "learning_rate": rate}.items() if isfinite(value)}
        return entry | means | throughput

    def state(self) -> dict[str, Any]:
        """Constructor arguments of a meter that continues from here; stored in checkpoints."""
        return {"sums": {name: float(total) for name, total in self.sums.items()}, "examples": self.examples}
