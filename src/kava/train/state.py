"""Where a run stands, as `trainer_state.json` of a checkpoint keeps it."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from kava.train.meter import LossMeter

STATE = "trainer_state.json"


@dataclass
class State:
    """Numbers of a run, after `global_step` optimizer steps.

    Attributes:
        max_steps: at which it ends.
        global_step: optimizer steps taken.
        epoch: passes over the data, with the fraction of the one that has begun.
        best_metric: best validation accuracy, a fraction.
        best_global_step: where that was.
        skipped_batches: steps left out because their numbers were not finite.
        position_limit: positions that are computed at once, where the device has run out of memory with more.
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
        """As it goes into the file."""
        return {item.name: getattr(self, item.name) for item in fields(self)} | {"meter": self.meter.state()}

    @classmethod
    def from_file(cls, path: Path) -> "State":
        """Read the file back."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(**content | {"meter": LossMeter(**content["meter"])})

    def evaluated(self) -> bool:
        """Whether there was a validation after the last step."""
        return any(entry["step"] == self.global_step and "eval_accuracy" in entry for entry in self.log_history)
