"""The micro-batches of every optimizer step: a function of seed and step alone, so that a run continues from any step.

An epoch is dealt out in rounds of one batch per process; a step is so many rounds. In an epoch's last step there may be fewer. A batch is
cut where it does not fit the device.
"""

import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch.utils.data import DataLoader, Dataset

from kava.config.schema import TrainingConfig
from kava.data.collate import Batch
from kava.data.sequences import EncodedExample
from kava.runtime import processes
from kava.train.micro_batches import MicroBatches
from kava.train.sampler import LengthSortedSampler

GPU_WORKERS = 4
"""Processes that build batches for a GPU where `training.num_workers` is 0: a step there takes less time than a batch does."""


class MicroBatch(NamedTuple):
    """What one process computes at a time.

    Attributes:
        batch: on the run's device.
        real: its examples that count: all, or none in a round that has examples for the other processes only, which all take the
            same passes.
        last: of its step.
    """

    batch: Batch
    real: int
    last: bool = False


class StepBatches:
    """Serves the steps of a run, one after the other.

    Args:
        examples: the training data.
        collate: makes a batch of examples for the step of a number.
        training: batch size, accumulation, number of steps, seed, worker processes.
        device: where batches go.
        sampler: the order of the examples in an epoch; None: shuffled.
        micro: how many examples are computed at once; None: whole batches.

    Attributes:
        current: the batch that is being computed.
    """

    def __init__(
        self,
        examples: Sequence[EncodedExample],
        collate: Callable[[Sequence[EncodedExample], int], Batch],
        training: TrainingConfig,
        device: torch.device,
        sampler: LengthSortedSampler | None = None,
        micro: MicroBatches | None = None,
    ) -> None:
        self.examples = examples
        self.collate = collate
        self.training = training
        self.device = device
        self.sampler = sampler
        self.round_size = training.batch_size * processes.world_size()
        self.rounds = math.ceil(len(examples) / self.round_size)
        self.steps_per_epoch = math.ceil(self.rounds / training.gradient_accumulation_steps)
        self.max_steps = training.max_steps if training.max_steps > 0 else math.ceil(training.epochs * self.steps_per_epoch)
        self.micro = micro or MicroBatches(training.batch_size)
        self.current: Batch | None = None
        self._loaded: Iterator[MicroBatch] | None = None
        # The batches of the step that is being taken, which may have to be taken again.
        self._step, self._held = -1, list[MicroBatch]()

    def of(self, step: int) -> Iterator[MicroBatch]:
        """This process's micro-batches of a step; `step` others came before it.

        Asked in order, from the start or from `open`; the last step may be asked for again.
        """
        if step != self._step:
            if self._loaded is None or step % self.steps_per_epoch == 0:
                self.open(step)
            self._step, self._held = step, []
        assert self._loaded is not None
        first, end = self._rounds_of(step)
        for number in range(first, end):
            if number - first == len(self._held):
                loaded = next(self._loaded)
                self._held.append(loaded._replace(batch=loaded.batch.to(self.device)))
            parts = self._cut(self._held[number - first], number)
            for index, part in enumerate(parts):
                self.current = part.batch
                yield part._replace(last=number == end - 1 and index == len(parts) - 1)

    def _cut(self, whole: MicroBatch, number: int) -> list[MicroBatch]:
        """The parts of a round's batch that are computed at once: on every process as many as on the first, which has no fewer examples."""
        batch, rows = whole.batch, self.micro.rows(whole.batch)
        most = min(self.training.batch_size, len(self.examples) - number * self.round_size)
        if most <= rows:
            return [whole]
        parts = [batch.rows(start, start + rows) if start < len(batch) else batch.rows(0, 1) for start in range(0, most, rows)]
        return [MicroBatch(part, min(max(whole.real - index * rows, 0), len(part))) for index, part in enumerate(parts)]

    def open(self, step: int) -> None:
        """Be ready to serve a step and those after it in its epoch. Draws from torch's generator, once."""
        epoch = _Epoch(self, step // self.steps_per_epoch)
        self._loaded = iter(
            DataLoader(
                epoch,
                batch_size=None,
                sampler=range(self._rounds_of(step)[0], self.rounds),
                worker_init_fn=_leave_signals_to_the_run,
                num_workers=self.training.num_workers or (GPU_WORKERS if self.device.type == "cuda" else 0),
                pin_memory=self.device.type == "cuda",
            )
        )

    def examples_in(self, step: int) -> int:
        """Examples of a step, over all processes."""
        first, end = self._rounds_of(step)
        return min(end * self.round_size, len(self.examples)) - first * self.round_size

    def epochs_after(self, steps: int) -> float:
        """Epochs that so many steps make."""
        epoch, rest = divmod(steps, self.steps_per_epoch)
        return epoch + rest * self.training.gradient_accumulation_steps / self.rounds

    def order(self, epoch: int) -> Int[np.ndarray, " N"]:
        """The order of the examples in an epoch."""
        if self.sampler is None:
            generator = torch.Generator().manual_seed(self.training.seed * 1_000_003 + epoch)
            return torch.randperm(len(self.examples), generator=generator).numpy()
        self.sampler.set_epoch(epoch)
        return np.fromiter(self.sampler, dtype=np.int64, count=len(self.examples))

    def _rounds_of(self, step: int) -> tuple[int, int]:
        first = step % self.steps_per_epoch * self.training.gradient_accumulation_steps
        return first, min(first + self.training.gradient_accumulation_steps, self.rounds)


class _Epoch(Dataset[MicroBatch]):
    """The rounds of an epoch, by number; what a worker process builds."""

    def __init__(self, steps: StepBatches, epoch: int) -> None:
        training = steps.training
        self.examples, self.collate, self.size = steps.examples, steps.collate, training.batch_size
        self.first_step, self.rounds_per_step = epoch * steps.steps_per_epoch, training.gradient_accumulation_steps
        self.order = steps.order(epoch)

    def __getitem__(self, number: int) -> MicroBatch:
        start = (number * processes.world_size() + processes.rank()) * self.size
        own = self.order[start : start + self.size]
        rows = own if len(own) else self.order[:1]
        step = self.first_step + number // self.rounds_per_step
        return MicroBatch(self.collate([self.examples[int(row)] for row in rows], step), len(own))


def _leave_signals_to_the_run(_: int) -> None:
    """A signal that ends a run often goes to all of its process group, and those that build batches are needed for the step's rest.

    SIGTERM stays as it is: it is also how the run's own process ends them.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
