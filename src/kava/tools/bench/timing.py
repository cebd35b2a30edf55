"""Seconds and peak memory, measured so that the variants can be compared: turns taken, medians, a fresh process each."""

import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from kava.errors import UserError
from kava.runtime.stage import stage

Run = Callable[[], Any]


@dataclass(frozen=True)
class Memory:
    """Bytes of one process (on a GPU: of its allocator) before and at the peak of one run, and the seconds that it took.

    `cpu_seconds` are those of all threads: what the run costs, however many others share the machine.
    """

    rest: int
    peak: int
    seconds: float
    cpu_seconds: float

    @property
    def cost(self) -> dict[str, float]:
        """As columns of a table."""
        return {"seconds": self.seconds, "processor seconds": self.cpu_seconds, "peak MiB": self.peak / 2**20}

    @property
    def above_rest(self) -> int:
        """What the run itself needed."""
        return self.peak - self.rest


def alternate(variants: Mapping[str, Run], repeats: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of every run. The variants take turns (A B C A B C ..), so that a slow minute of the machine is shared by all.

    Each variant runs once more at first, unmeasured.

    Args:
        variants: name -> what to run.
        repeats: measured rounds, at least 1.
        device: where the work happens; a GPU is waited for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    with stage("measuring", (repeats + 1) * len(variants), "runs") as advance:
        for round_number in range(repeats + 1):
            for name, run in variants.items():
                taken = _spend(run, device)[0]
                if round_number:
                    seconds[name].append(taken)
                advance(1)
    return seconds


def peak_memory(prepare: Callable[..., Run], *arguments: Any, device: str = "cpu") -> Memory:
    """Peak memory of one run in a fresh process, where no other variant has left anything behind.

    Args:
        prepare: a function of a module; called with `arguments` in that process, returns what to run.
        arguments: plain values.
        device: "cpu" counts the process's resident memory, anything else torch's allocator on that GPU.

    Raises:
        UserError: the process was killed, most likely for want of memory.
    """
    try:
        with stage("measuring memory"), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(_measure, prepare, arguments, device).result()
    except BrokenProcessPool:
        raise UserError(
            "the process that measures memory was killed, most likely because memory ran out; take a smaller --shape or --batch_size"
        ) from None


def _measure(prepare: Callable[..., Run], arguments: tuple[Any, ...], device: str) -> Memory:
    run = prepare(*arguments)
    if device == "cpu":
        rest = _resident("VmRSS")
        spent = _spend(run, device)
        return Memory(rest, _resident("VmHWM"), *spent)
    import torch

    torch.cuda.reset_peak_memory_stats(device)
    rest = torch.cuda.memory_allocated(device)
    spent = _spend(run, device)
    return Memory(rest, torch.cuda.max_memory_allocated(device), *spent)


def _spend(run: Run, device: str) -> tuple[float, float]:
    """Seconds of one run by the clock, and of processors."""
    _wait(device)
    started, before = time.perf_counter(), time.process_time()
    run()
    _wait(device)
    return time.perf_counter() - started, time.process_time() - before


def _wait(device: str) -> None:
    if device != "cpu":
        import torch

        torch.cuda.synchronize(device)


def _resident(field: str) -> int:
    """Resident bytes now (VmRSS) or at their highest (VmHWM) of this process."""
    # Not getrusage where there is /proc: Linux hands a parent's ru_maxrss down to the children that it starts.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith(f"{field}:"))
        return int(line.split()[1]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
