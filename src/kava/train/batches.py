"""Micro-batches of every optimizer step. They depend only on the seed and the step, so that a run can resume from any step.

An epoch consists of rounds of one batch per process, and a step of `gradient_accumulation_steps` rounds; the last step of an epoch may
have fewer. A batch that does not fit on the device is cut into micro-batches.
"""

import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch.utils.data import DataLoader, Dataset

from kava.config.schema import TrainingConfig
from kava.data.collate import Batch
from kava.data.sequences import EncodedExample
from kava.errors import UserError, reason_of, report_out_of_memory
from kava.runtime import processes
from kava.train.micro_batches import MicroBatches
from kava.train.sampler import LengthSortedSampler

GPU_WORKERS = 4
"""Worker processes that build batches for a GPU if `training.num_workers` is 0: a GPU runs a step faster than a batch is built."""

_CURE = "end other programs on this machine, or give --training.num_workers 1"


@contextmanager
def _report_dead_workers() -> Iterator[None]:
    """Turn the death of a worker process that builds batches into one sentence.

    Raises:
        UserError: a worker died: the kernel killed it when memory ran out, or it found no shared memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise UserError(
            f"a process that builds batches died ({reason_of(error).rstrip('.')}), perhaps for want of memory, or in a container of shared "
            "memory (docker run --shm-size 8g): ask for more, or give --training.num_workers 1; --resume goes on from the last checkpoint"
        ) from None


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Undo that torch's first loader makes the death of a worker raise an error wherever the main thread is, in other libraries too.

    Whoever waits for the worker's next batch notices it in any case.
    """
    handler = None
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        # None too where it is not Python's.
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)


def steps_per_epoch(training: TrainingConfig, rows: int, num_processes: int) -> int:
    """Number of optimizer steps in which several processes go through `rows` examples once."""
    return math.ceil(rows / (training.batch_size * training.gradient_accumulation_steps * num_processes))


def steps_of_run(training: TrainingConfig, per_epoch: int) -> int:
    """Number of optimizer steps of a run with `per_epoch` steps in an epoch."""
    return training.max_steps if training.max_steps > 0 else math.ceil(training.epochs * per_epoch)


class MicroBatch(NamedTuple):
    """Examples that one process computes at once.

    Attributes:
        batch: the padded examples; `StepBatches.of` puts them on the run's device.
        real: number of examples that count: all of them, or 0 if only other processes have examples left in this round (all
            processes must run the same passes).
        last: whether this is the last micro-batch of its step.
    """

    batch: Batch
    real: int
    last: bool = False


class StepBatches:
    """Yields the micro-batches of a run, step by step.

    Args:
        examples: the training data.
        collate: builds a batch from examples and the number of the step.
        training: batch size, accumulation, number of steps, seed, worker processes.
        device: device that the batches are moved to.
        sampler: the order of the examples in an epoch; None: shuffled.
        micro: decides how many examples are computed at once; None: whole batches.

    Attributes:
        current: the micro-batch that is being computed.
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
        self.steps_per_epoch = steps_per_epoch(training, len(examples), processes.world_size())
        self.max_steps = steps_of_run(training, self.steps_per_epoch)
        self.micro = micro or MicroBatches(training.batch_size)
        self.current: Batch | None = None
        self._loaded: Iterator[MicroBatch] | None = None
        # Batches of the current step, kept because the step may have to be repeated.
        self._step, self._held = -1, list[MicroBatch]()

    def of(self, step: int) -> Iterator[MicroBatch]:
        """Yield this process's micro-batches of step number `step`, counted from 0.

        Steps must be requested in order, from the start or from the step given to `open`. The latest step may be requested again.

        Raises:
            UserError: the machine's memory ran out while a batch was built, for which a smaller micro-batch is no cure, or a worker died.
        """
        if step != self._step:
            if self._loaded is None or step % self.steps_per_epoch == 0:
                with report_out_of_memory("building batches", _CURE):
                    self.open(step)
            self._step, self._held = step, []
        assert self._loaded is not None
        first, end = self._rounds_of(step)
        for number in range(first, end):
            if number - first == len(self._held):
                with report_out_of_memory("building batches", _CURE), _report_dead_workers():
                    self._held.append(next(self._loaded))
            held = self._held[number - first]
            # Kept before it is copied: the device may run out of memory, and the step is then repeated.
            self.current = held.batch
            self._held[number - first] = held._replace(batch=held.batch.to(self.device))
            parts = self._cut(self._held[number - first], number)
            for index, part in enumerate(parts):
                self.current = part.batch
                yield part._replace(last=number == end - 1 and index == len(parts) - 1)

    def _cut(self, whole: MicroBatch, number: int) -> list[MicroBatch]:
        """Cut a round's batch into micro-batches; every process has as many as the first one, which has the most examples."""
        batch, rows = whole.batch, self.micro.rows(whole.batch)
        most = min(self.training.batch_size, len(self.examples) - number * self.round_size)
        if most <= rows:
            return [whole]
        parts = [batch.rows(start, start + rows) if start < len(batch) else batch.rows(0, 1) for start in range(0, most, rows)]
        return [MicroBatch(part, min(max(whole.real - index * rows, 0), len(part))) for index, part in enumerate(parts)]

    def open(self, step: int) -> None:
        """Start loading the batches of a step and of the rest of its epoch. Draws from torch's random generator once."""
        epoch = _Epoch(self, step // self.steps_per_epoch)
        loader = DataLoader(
            epoch,
            batch_size=None,
            sampler=range(self._rounds_of(step)[0], self.rounds),
            worker_init_fn=_prepare_worker,
            num_workers=self.training.num_workers or (GPU_WORKERS if self.device.type == "cuda" else 0),
            pin_memory=self.device.type == "cuda",
        )
        with _undisturbed():
            self._loaded = iter(loader)

    def examples_in(self, step: int) -> int:
        """Number of examples in a step, over all processes."""
        first, end = self._rounds_of(step)
        return min(end * self.round_size, len(self.examples)) - first * self.round_size

    def epochs_after(self, steps: int) -> float:
        """Number of epochs, with a fraction, that are done after `steps` steps."""
        epoch, rest = divmod(steps, self.steps_per_epoch)
        return epoch + rest * self.training.gradient_accumulation_steps / self.rounds

    def order(self, epoch: int) -> Int[np.ndarray, " N"]:
        """The order of the examples in an epoch."""
        if self.sampler is not None:
            return self.sampler.order(epoch)
        generator = torch.Generator().manual_seed(self.training.seed * 1_000_003 + epoch)
        return torch.randperm(len(self.examples), generator=generator).numpy()

    def _rounds_of(self, step: int) -> tuple[int, int]:
        first = step % self.steps_per_epoch * self.training.gradient_accumulation_steps
        return first, min(first + self.training.gradient_accumulation_steps, self.rounds)


class _Epoch(Dataset[MicroBatch]):
    """Rounds of an epoch, by number; an item is this process's batch of a round, built in a DataLoader worker."""

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


def _prepare_worker(_: int) -> None:
    """Ignore stop signals in a DataLoader worker, which is needed until the current step is finished, and not after the run's end.

    Such a signal often goes to the whole process group, so the worker also gets its own.
    SIGTERM is not ignored: the run's own process ends the workers with it.
    """
    processes.die_with_parent()
    sys.excepthook = _report
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an exception in a worker's thread, but not that the run's own process broke a connection off: it was killed."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)
