"""Sums of the losses between two log lines."""

from typing import Any

from torch import Tensor


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

    def add(self, sums: dict[str, Tensor], examples: int) -> None:
        """Add a step's sums; they stay on their device until the next log line."""
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.examples += examples

    def time(self, examples: int, seconds: float) -> None:
        """Add the duration of a step, without validation and saving."""
        self.timed += examples
        self.seconds += seconds

    def take_throughput(self) -> float | None:
        """Examples per second of all processes since the last call; None if there was no step."""
        throughput = self.timed / self.seconds if self.seconds else None
        self.timed, self.seconds = 0, 0.0
        return throughput

    def take(self) -> dict[str, float]:
        """Mean losses since the last call; empty if there were no examples."""
        means = {name: float(total) / self.examples for name, total in self.sums.items()} if self.examples else {}
        self.sums, self.examples = {}, 0
        return means

    def state(self) -> dict[str, Any]:
        """Constructor arguments of a meter that continues from here; stored in checkpoints."""
        return {"sums": {name: float(total) for name, total in self.sums.items()}, "examples": self.examples}
