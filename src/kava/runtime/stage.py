"""Long work is never silent: after half a minute, and every half a minute from then on, one line says how far it is.

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
from contextlib import contextmanager
from typing import Literal

from kava.runtime import processes

EVERY = 30.0
"""Seconds between two lines."""
_stream: Literal["stdout", "stderr"] | None = None


def speak_on(stream: Literal["stdout", "stderr"] | None) -> None:
    """Where the lines go; None, as at first: nowhere. Commands choose, a program that uses this package hears nothing."""
    global _stream
    _stream = stream


@contextmanager
def stage(what: str, total: int = 0, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Work that may take long; the function that it gives is told how much of `total` is done since the last call.

    Args:
        what: the work, as "answering".
        total: how much there is of it; 0: not known.
        unit: of what.
    """
    started, done, over = time.perf_counter(), 0, threading.Event()

    def advance(count: int = 1) -> None:
        nonlocal done
        done += count

    def speak() -> None:
        while not over.wait(EVERY):
            print(_line(what, done, total, unit, time.perf_counter() - started), file=getattr(sys, _stream or "stderr"), flush=True)

    if _stream is None or not processes.is_main():
        yield advance
        return
    # A daemon: a program that is told to end does not wait for it.
    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield advance
    finally:
        over.set()
        speaker.join()


def duration(seconds: float) -> str:
    """``41 s``, ``2 minutes``, ``1.5 hours``."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = max(1, round(seconds / 60))
    return f"{minutes} minute{'s' * (minutes != 1)}" if seconds < 3600 else f"{seconds / 3600:.1f} hours"


def _line(what: str, done: int, total: int, unit: str, seconds: float) -> str:
    if not total:
        return f"{what}: {f'{done:,} {unit}, ' if done else ''}{duration(seconds)} so far"
    left = f", about {duration(seconds * (total - done) / done)} left" if done else ""
    return f"{what}: {done:,} of {total:,} {unit}, {duration(seconds)}{left}"
