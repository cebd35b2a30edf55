"""Progress lines for long work: every 30 seconds, one line says how far it is.

with stage("answering", 1319, "questions") as advance:
    for batch in batches:
        ...
        advance(len(batch))

    answering: 320 of 1,319 questions, 31 s, about 2 minutes left
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from kava.runtime import processes

EVERY = 30.0
"""Seconds between two lines."""
_stream: Literal["stdout", "stderr"] | None = None


def set_progress_stream(stream: Literal["stdout", "stderr"] | None) -> None:
    """Set where progress lines go; None (the default): nowhere. Commands set it; a program that imports this package gets no lines."""
    global _stream
    _stream = stream


@contextmanager
def stage(what: str, total: int = 0, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Print progress lines inside the block; yields a function to call with the amount of work done since its last call.

    Args:
        what: name of the work, such as "answering".
        total: total amount of work; 0: not known.
        unit: unit of the amount, such as "questions".
    """
    started, done, over = time.perf_counter(), 0, threading.Event()

    def advance(count: int = 1) -> None:
        nonlocal done
        done += count

    def speak() -> None:
        # Whoever reads the lines may have left (`| head`): the work goes on.
        with suppress(OSError):
            while not over.wait(EVERY):
                print(_line(what, done, total, unit, time.perf_counter() - started), file=getattr(sys, _stream or "stderr"), flush=True)

    if _stream is None or not processes.is_main():
        yield advance
        return
    # A daemon thread: a program that ends does not wait for it.
    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield advance
    finally:
        over.set()
        speaker.join()


def duration(seconds: float) -> str:
    """Return a duration such as ``41 s``, ``2 minutes`` or ``1.5 hours``."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = max(1, round(seconds / 60))
    return f"{minutes} minute{'s' * (minutes != 1)}" if seconds < 3600 else f"{seconds / 3600:.1f} hours"


def _line(what: str, done: int, total: int, unit: str, seconds: float) -> str:
    if not total:
        return f"{what}: {f'{done:,} {unit}, ' if done else ''}{duration(seconds)} so far"
    left = f", about {duration(seconds * (total - done) / done)} left" if done else ""
    return f"{what}: {done:,} of {total:,} {unit}, {duration(seconds)}{left}"
