"""Child processes of an experiment: their logs, signals and GPUs."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import takewhile
from pathlib import Path
from types import FrameType

from kava.runtime.processes import PARENT, signals_to_handle

# Progress lines of a training and of an evaluation.
PROGRESS = re.compile(r": step \d+/\d+ |: [\d,]+ of [\d,]+ questions, ")
TAIL_LINES = 15
TAIL_BYTES = 16_384
# Slurm's warning before the time limit is USR1; TERM and INT come from scancel, a service manager or Ctrl-C, HUP from a closed terminal.
PASSED_ON = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))


class StoppedError(Exception):
    """A signal arrived, so no new step starts."""


@dataclass(frozen=True)
class Finished:
    """Exit code of a child process, and its last lines of output."""

    returncode: int
    tail: str

    @property
    def reason(self) -> str:
        return f"killed by signal {-self.returncode}" if self.returncode < 0 else f"exit code {self.returncode}"


class Children:
    """Starts child processes and forwards signals to the running ones. Thread-safe."""

    def __init__(self) -> None:
        self.stop_signal: int | None = None
        self._running: set[subprocess.Popen[bytes]] = set()
        # A second signal may arrive while the main thread passes on the first.
        self._guard = threading.RLock()

    def run(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str], inherit: tuple[int, ...] = (),
        watch: Callable[[str], None] | None = None, every: float = 25.0,
    ) -> Finished:  # fmt: skip
        """Run a command to its end and append its output to `log`.

        Every `every` seconds, `watch` is called with the newest progress line if that has changed.

        Raises:
            StoppedError: a signal arrived before it could start.
        """
        with log.open("ab") as file:
            file.write(f"\n[{datetime.now(timezone.utc).isoformat(timespec='seconds')}] {shlex.join(command)}\n".encode())
            file.flush()
            start = file.tell()
            with self._guard:
                if self.stop_signal is not None:
                    raise StoppedError
                # In its own session, the child receives Ctrl-C once, from us, and not a second time from the terminal.
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                    env={**os.environ, **environment, PARENT: str(os.getpid())}, start_new_session=True, pass_fds=inherit,
                )  # fmt: skip
                self._running.add(child)
            returncode = _wait(child, log, start, watch, every)
        with self._guard:
            self._running.discard(child)
        return Finished(returncode, _tail(log, start))

    @contextmanager
    def passing_signals(self) -> Iterator[None]:
        """Inside the block, forward the signals in `PASSED_ON` to the children, which save and exit; after a signal no new child starts."""
        before = {number: signal.signal(number, self._pass_on) for number in signals_to_handle(PASSED_ON)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        with self._guard:
            self.stop_signal = number
            for child in self._running:
                # Windows cannot send these signals; there the console signals the child directly.
                with contextlib.suppress(ValueError):
                    child.send_signal(number)


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as named in `CUDA_VISIBLE_DEVICES`, without importing torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        # As CUDA reads it: nothing behind an invalid number is visible.
        return list(takewhile(lambda name: name != "-1", filter(None, map(str.strip, chosen.split(",")))))
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(index) for index, line in enumerate(line for line in listing.splitlines() if line.startswith("GPU "))]


def environments(parallel: int, gpus: Sequence[str], cpus: int) -> list[dict[str, str]]:
    """Return the environment of each of `parallel` children: a share of the CPU threads and, if there are several GPUs, one GPU in turn."""
    if parallel == 1:
        return [{}]
    threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cpus // parallel))}
    if len(gpus) < 2:
        return [dict(threads) for _ in range(parallel)]
    return [{**threads, "CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} for slot in range(parallel)]


def _wait(child: "subprocess.Popen[bytes]", log: Path, start: int, watch: Callable[[str], None] | None, every: float) -> int:
    last = ""
    while True:
        try:
            return child.wait(None if watch is None else every)
        except subprocess.TimeoutExpired:
            newest = next((line for line in reversed(_tail(log, start).splitlines()) if PROGRESS.search(line)), "")
            if watch is not None and newest and newest != last:
                watch(newest)
            last = newest


def _tail(log: Path, start: int) -> str:
    return "\n".join(read_end(log, TAIL_BYTES, start).splitlines()[-TAIL_LINES:])


def read_end(path: Path, most: int, start: int = 0) -> str:
    """Return the last bytes of a file as text: at most `most`, and none before `start`."""
    with path.open("rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - most))
        return file.read().decode("utf-8", errors="replace")
