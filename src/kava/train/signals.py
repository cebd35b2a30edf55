"""SIGTERM, SIGINT, SIGHUP and SIGUSR1 finish the step, save, and leave with a code that says which it was."""

import signal
from types import FrameType
from typing import Any

from kava.runtime import processes
from kava.runtime.processes import obeyed

# SIGUSR1 is the scheduler's "time is nearly up": the job script requeues on 85.
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
if hasattr(signal, "SIGUSR1"):  # not on Windows
    EXIT_CODES |= {signal.SIGUSR1: 85, signal.SIGHUP: 129}


class StopOnSignal:
    """Remembers a signal until the step in which it came is finished. Use as a context manager."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
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

    def requested(self, device: Any) -> bool:
        """Whether to save and stop now; all processes ask, after each step."""
        return self._agreed(device) if processes.world_size() > 1 else self.received is not None

    def _agreed(self, device: Any) -> bool:
        """A signal of one rank is a signal of all: ranks that stop after different steps wait for each other for ever."""
        import torch
        from torch import distributed

        number = torch.tensor(self.received or 0, device=device)
        distributed.all_reduce(number, op=distributed.ReduceOp.MAX)
        found = int(number)
        # One that came in the meantime is everyone's after the next step.
        if found:
            self.received = signal.Signals(found)
        return found > 0
