"""SIGTERM, SIGINT, SIGHUP and SIGUSR1 finish the step, save, and leave with a code that says which it was."""

import signal
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from kava.runtime.processes import obeyed

# SIGUSR1 is the scheduler's "time is nearly up": the job script requeues on 85.
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
if hasattr(signal, "SIGUSR1"):  # not on Windows
    EXIT_CODES |= {signal.SIGUSR1: 85, signal.SIGHUP: 129}


class StopOnSignal(TrainerCallback):
    """Asks the Trainer to save and stop at the end of the step in which a signal came. Use as a context manager."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.stopped = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        for number in obeyed(EXIT_CODES):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)

    @property
    def exit_code(self) -> int:
        """0 where no signal came."""
        return EXIT_CODES[self.received] if self.received else 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop."""
        if args.world_size > 1:
            self._agree(args.device)
        if self.received:
            self.stopped = True
            # Whoever sent the signal waits for seconds, and a validation takes minutes: one that is due comes after the resume.
            control.should_evaluate = False
            control.should_save = True
            control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The Trainer closes the epoch, even when it stops inside one; the step is saved already."""
        if self.stopped:
            control.should_evaluate = False
            control.should_save = False

    def _agree(self, device: Any) -> None:
        """A signal of one rank is a signal of all: ranks that stop after different steps wait for each other for ever."""
        import torch
        from torch import distributed

        number = torch.tensor(self.received or 0, device=device)
        distributed.all_reduce(number, op=distributed.ReduceOp.MAX)
        self.received = signal.Signals(int(number)) if number else None
