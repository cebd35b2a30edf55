"""SIGTERM, SIGINT and SIGUSR1 finish the step, save, and leave with a code that says which it was."""

import signal
from types import FrameType
from typing import Any

from transformers import TrainerCallback

# SIGUSR1 is the scheduler's "time is nearly up": the job script requeues on 85.
EXIT_CODES = {signal.SIGUSR1: 85, signal.SIGINT: 130, signal.SIGTERM: 143}


class StopOnSignal(TrainerCallback):
    """Asks the Trainer to save and stop at the end of the step in which a signal came. Use as a context manager."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        for number in EXIT_CODES:
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
        if self.received:
            control.should_save = True
            control.should_training_stop = True
