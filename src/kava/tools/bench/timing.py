"""Time and peak memory of variants, measured for a fair comparison: timed runs alternate, memory is measured in fresh processes."""

import gc
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
MIB = 2**20


@dataclass(frozen=True)
class Memory:
    """Bytes of one process (on a GPU: of its allocator) before one run and at its peak, and the seconds that it took.

    `cpu_seconds` is the CPU time of all threads, which hardly depends on other processes on the machine.
    """

    rest: int
    peak: int
    seconds: float
    cpu_seconds: float

    @property
    def cost(self) -> dict[str, float]:
        """Time and peak memory as columns of a table."""
        return {"seconds": self.seconds, "processor seconds": self.cpu_seconds, "peak MiB": self.peak / MIB}

    @property
    def above_rest(self) -> int:
        """Bytes that the run itself needed."""
        return self.peak - self.rest


def alternate(variants: Mapping[str, Run], repeats: int, device: str = "cpu") -> dict[str, list[float]]:
    """Return the seconds of every run. The variants alternate (A B C A B C ..), so that a slow phase of the machine affects all equally.

    Each variant runs once before that as a warm-up, which is not measured.

    Args:
        variants: name -> function to run.
        repeats: measured rounds, at least 1.
        device: device of the work; a GPU is synchronized before the clock is read.
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
    """Return the peak memory of one run in a fresh process, which holds no memory of other variants.

    Args:
        prepare: a function at module level; called with `arguments` in that process, returns the function to run.
        arguments: picklable values.
        device: "cpu" measures the resident memory of the process, anything else the memory of torch's allocator on that GPU.

    Raises:
        UserError: the process was killed, most likely because memory ran out.
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
    # What the preparation left in reference cycles, such as a model for warming up, would be freed at any moment of the run.
    gc.collect()
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
    """Return the wall-clock seconds and the CPU seconds of one run."""
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
    """Return the resident bytes of this process: current (VmRSS) or peak (VmHWM); without /proc, the peak for both."""
    # Prefer /proc over getrusage: on Linux, a child process inherits the ru_maxrss of its parent.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith(f"{field}:"))
        return int(line.split()[1]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
