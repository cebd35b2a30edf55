"""Stages of iCoT and Coconut: a function of the optimizer step alone, so that a resumed run is at the right one."""

from typing import Any

from transformers import TrainerCallback

from kava.data.collate import Collator


class Curriculum(TrainerCallback):
    """Moves the collator's stage on every `steps_per_stage` optimizer steps, up to `last_stage`.

    Args:
        collator: builds the batches.
        steps_per_stage: optimizer steps between two stages.
        last_stage: the stage at which the written trace is gone.
    """

    def __init__(self, collator: Collator, steps_per_stage: int, last_stage: int) -> None:
        self.collator = collator
        self.steps_per_stage = steps_per_stage
        self.last_stage = last_stage

    def _update(self, state: Any) -> None:
        self.collator.stage = min(state.global_step // self.steps_per_stage, self.last_stage)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Also the first call after a resume."""
        self._update(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Batches are built after the step before them."""
        self._update(state)
