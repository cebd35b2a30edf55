"""Stages of iCoT and Coconut. They depend only on the optimizer step and the example, so that a resumed run is at the right stage.

Inference uses the model as the last stage trains it, without a written trace. A run that ends before the last stage has not trained this.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from kava.config import Config
from kava.data.collate import Batch, Collator
from kava.data.sequences import EncodedExample
from kava.methods import METHODS
from kava.train.batches import steps_of_run, steps_per_epoch


@dataclass(frozen=True)
class Schedule:
    """Stages of a run of `total_steps` optimizer steps: stage s begins after s x `steps_per_stage` steps, and `last` is the last stage."""

    steps_per_stage: int
    last: int
    total_steps: int

    def stage(self, step: int) -> int:
        """The stage of step number `step`, counted from 0."""
        return min(step // self.steps_per_stage, self.last)

    @property
    def ends(self) -> bool:
        """Whether the last stage begins before the run is over."""
        return self.last * self.steps_per_stage < self.total_steps


def schedule(config: Config, rows: int, longest_trace: int, num_processes: int = 1) -> Schedule | None:
    """The schedule for `rows` training rows whose longest trace has `longest_trace` tokens; None if the method has no curriculum."""
    if METHODS[config.method].curriculum == "none":
        return None
    training = config.training
    per_epoch = steps_per_epoch(training, rows, num_processes)
    steps_per_stage = max(1, round(training.epochs_per_stage * per_epoch))
    return Schedule(steps_per_stage, _last_stage(config, longest_trace), steps_of_run(training, per_epoch))


def _last_stage(config: Config, longest_trace: int) -> int:
    """The first stage at which nothing of the trace is written, for traces of up to `longest_trace` tokens."""
    training, latent = config.training, config.latent
    if METHODS[config.method].curriculum == "remove_tokens":
        stages = -(-longest_trace // training.tokens_per_stage)
        beyond = training.remove_all_beyond
        return stages if beyond is None else min(stages, beyond // training.tokens_per_stage + 1)
    # The last stage has all M latents and writes no trace, as at inference.
    return -(-latent.num_tokens // latent.tokens_per_step) + training.trailing_stage


def unreachable_stage(config: Config, rows: int, longest_trace: int, num_processes: int = 1) -> str | None:
    """Error message with numbers and possible settings if the last stage does not begin within the run; else None."""
    stages = schedule(config, rows, longest_trace, num_processes)
    if stages is None or stages.ends:
        return None
    per_epoch = steps_per_epoch(config.training, rows, num_processes)
    reached = (stages.total_steps - 1) // stages.steps_per_stage
    cures = []
    if METHODS[config.method].curriculum == "remove_tokens":
        what = f"the longest trace, {longest_trace} tokens, is fully removed at stage {stages.last}"
        if reached:
            cures.append(f"training.tokens_per_stage to at least {-(-longest_trace // reached)}")
            if (beyond := reached * config.training.tokens_per_stage - 1) > 0:
                cures.append(f"training.remove_all_beyond to at most {beyond}")
    else:
        what = f"all {config.latent.num_tokens} latents are there, and no step, at stage {stages.last}"
        if (stages_of_latents := reached - config.training.trailing_stage) > 0:
            cures.append(f"latent.num_tokens to at most {stages_of_latents * config.latent.tokens_per_step}")
    if shorter := (stages.total_steps - 1) // stages.last:
        # Rounded down, with enough digits to stay close to a whole number of steps.
        digits = 10 ** max(4, len(str(per_epoch)))
        cures.append(f"training.epochs_per_stage to at most {math.floor(digits * shorter / per_epoch) / digits:g}")
    needed = stages.last * stages.steps_per_stage + 1
    cures.append(
        f"training.max_steps to at least {needed}" if config.training.max_steps > 0 else f"training.epochs above {needed / per_epoch:.4g}"
    )
    return (
        f"the curriculum of {config.method} cannot end within the run: {what}, {needed - 1:,} steps after the start "
        f"({stages.steps_per_stage:,} steps a stage), and the run has {stages.total_steps:,}; set {', or '.join(cures)}"
    )


@dataclass(frozen=True)
class Curriculum:
    """Builds the batches of a step at the stage of this step; without a schedule there is one stage.

    Attributes:
        collator: builds the batches.
        schedule: start of each stage.
        uniform_prob: probability that an example is trained at a stage drawn for it instead.
        seed: seed of the run.
    """

    collator: Collator
    schedule: Schedule | None = None
    uniform_prob: float = 0.0
    seed: int = 0

    def __call__(self, examples: Sequence[EncodedExample], step: int) -> Batch:
        """A batch for optimizer step number `step`, counted from 0."""
        self.collator.draw = (self.seed, step)
        if self.schedule is None:
            return self.collator.collate(examples)
        self.collator.stage = self.schedule.stage(step)
        if not self.uniform_prob:
            return self.collator.collate(examples)
        return self.collator.collate(examples, [self._drawn_stage(self.schedule, example, step) for example in examples])

    def _drawn_stage(self, schedule: Schedule, example: EncodedExample, step: int) -> int:
        """The stage at which a step trains an example; as in Coconut's own code, a drawn one replaces up to all steps of the example."""
        drawn = Random(f"stage {self.seed} {step} {example.seed}")
        if drawn.random() >= self.uniform_prob:
            return schedule.stage(step)
        replaces_steps = self.collator.method.curriculum == "replace_steps"
        return min(drawn.randint(0, len(example.steps) if replaces_steps else schedule.last), schedule.last)

    def begins(self, step: int) -> bool:
        """Whether a stage begins with this step."""
        return self.schedule is not None and step > 0 and self.schedule.stage(step) != self.schedule.stage(step - 1)
