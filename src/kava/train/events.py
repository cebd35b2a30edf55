"""Moments of a training that transformers tells callbacks about, and nobody else."""

from typing import Any

from transformers import TrainerCallback


class Events(TrainerCallback):
    """Calls a `KavaTrainer`'s own methods at those moments."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make up for a validation that was left out."""
        self.trainer.validate_if_due()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the step's numbers."""
        self.trainer.guard_step()
