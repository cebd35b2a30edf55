"""On SIGTERM, SIGINT, SIGHUP or SIGUSR1 a run finishes the step, saves, and exits with a code that identifies the signal."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from kava.runtime import processes
from kava.runtime.processes import signals_to_handle

Result = TypeVar("Result")
# A scheduler sends SIGUSR1 shortly before the time limit; the job script requeues on exit code 85.
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
if hasattr(signal, "SIGUSR1"):  # not on Windows
    EXIT_CODES |= {signal.SIGUSR1: 85, signal.SIGHUP: 129}


class _CutOffError(BaseException):
    """Ends what `StopOnSignal.cut_off` runs; no handler of `Exception` catches it."""


class StopOnSignal:
    """Remembers a signal until the current step is finished. Use as a context manager; in a thread it does nothing."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._cuts_off = False

    def __enter__(self) -> "StopOnSignal":
        # Python lets only the main thread handle signals.
        for number in signals_to_handle(EXIT_CODES) if threading.current_thread() is threading.main_thread() else ():
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if self._cuts_off:
            self._cuts_off = False
            raise _CutOffError

    def cut_off(self, run: Callable[[], Result]) -> Result | None:
        """Run something until a signal is received; returns None then. Several processes, which wait for each other, run it to its end."""
        try:
            try:
                self._cuts_off = processes.world_size() == 1
                return None if self._cuts_off and self.received else run()
            finally:
                self._cuts_off = False
        except _CutOffError:
            return None

    @property
    def exit_code(self) -> int:
        """Exit code for the received signal; 0 if there was none."""
        return EXIT_CODES[self.received] if self.received else 0

    def requested(self, device: Any) -> bool:
        """Whether to save and stop now; all processes call this after each step and validation."""
        return self._agreed(device) if processes.world_size() > 1 else self.received is not None

    def _agreed(self, device: Any) -> bool:
        """Whether any rank received a signal. All ranks must stop after the same step, or they would wait for each other forever."""
        import torch
        from torch import distributed

        number = torch.tensor(self.received or 0, device=device)
        distributed.all_reduce(number, op=distributed.ReduceOp.MAX)
        found = int(number)
        # A signal that arrived in the meantime is shared after the next step.
        if found:
            self.received = signal.Signals(found)
        return found > 0
