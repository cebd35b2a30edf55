"""Stages of iCoT and Coconut: a function of the optimizer step alone, so that a resumed run is at the right one."""

from collections.abc import Sequence
from dataclasses import dataclass

from kava.data.collate import Batch, Collator
from kava.data.sequences import EncodedExample


def hand_on(examples: list[EncodedExample]) -> list[EncodedExample]:
    """The data collator of a method with a curriculum: batches are built when their step is known."""
    return examples


@dataclass(frozen=True)
class Curriculum:
    """Builds the batches of a step at the stage of that step.

    Attributes:
        collator: builds the batches.
        steps_per_stage: optimizer steps between two stages.
        last_stage: the stage at which the written trace is gone.
    """

    collator: Collator
    steps_per_stage: int
    last_stage: int

    def collate(self, examples: Sequence[EncodedExample], step: int) -> Batch:
        """A batch of the optimizer step that follows `step` others."""
        self.collator.stage = min(step // self.steps_per_stage, self.last_stage)
        return self.collator.collate(examples)
