"""Training state of a run, stored in `trainer_state.json` of a checkpoint."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from kava.train.meter import LossMeter

STATE = "trainer_state.json"


@dataclass
class State:
    """State of a run after `global_step` optimizer steps.

    Attributes:
        max_steps: number of steps after which the run ends.
        global_step: optimizer steps taken.
        epoch: passes over the data, including the fraction of the current one.
        best_metric: best validation accuracy, a fraction.
        best_global_step: step of the best validation accuracy.
        skipped_batches: steps skipped because of non-finite numbers.
        position_limit: maximum number of positions computed at once; None if the device has not run out of memory.
        log_history: every log entry, with its step.
        meter: losses since the last log entry.
    """

    max_steps: int
    global_step: int = 0
    epoch: float = 0.0
    best_metric: float | None = None
    best_global_step: int | None = None
    skipped_batches: int = 0
    position_limit: int | None = None
    log_history: list[dict[str, float]] = field(default_factory=list)
    meter: LossMeter = field(default_factory=LossMeter)

    def to_dict(self) -> dict[str, Any]:
        """The content of the file."""
        return {item.name: getattr(self, item.name) for item in fields(self)} | {"meter": self.meter.state()}

    @classmethod
    def from_file(cls, path: Path) -> "State":
        """Read the state from the file."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(**content | {"meter": LossMeter(**content["meter"])})

    def evaluated(self) -> bool:
        """Whether there was a validation after the last step."""
        return any(entry["step"] == self.global_step and "eval_accuracy" in entry for entry in self.log_history)
