"""Progress of a run for the user: a live bar on a terminal, plain lines elsewhere, and a line per log entry in `train.log`."""

import contextlib
import errno
import os
import re
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from kava.results import write_text
from kava.runtime import processes
from kava.runtime.stage import EVERY, duration
from kava.train.state import State

TRAIN_LOG = "train.log"
# Number of slow first steps, and number of steps after them that are timed to estimate the duration of the run.
WARM_UP, TIMED = 2, 3
_STEP = re.compile(r" step (\d+)/")
_SHORT = {"student_ce": "ce", "teacher_ce": "teacher", "grad_norm": "grad", "learning_rate": "lr", "examples_per_second": "examples/s"}


class _Bar(Progress):
    """Name, bar, steps and time left in one line of any width; the latest numbers in a separate line below."""

    def __init__(self, console: Console) -> None:
        name = TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=2))
        # A bar without a fixed width takes the space that the other columns leave.
        bar = BarColumn(bar_width=None, table_column=Column(ratio=1))
        super().__init__(name, bar, MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left"), console=console, expand=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            if task.fields["note"]:
                yield Text(task.fields["note"], style="dim")


# What writing to a closed pipe or terminal fails with; a full disk is another matter.
_CLOSED = (errno.EPIPE, errno.EIO)


class Report:
    """Logs to `train.log` and to the terminal.

    Args:
        log_file: file to append to, one line per log entry.
        title: name of the run, beside the bar and before each printed line.
        quiet: show nothing on the terminal.
    """

    def __init__(self, log_file: Path, title: str, quiet: bool = False) -> None:
        self.log_file = log_file
        self.title = title
        self.quiet = quiet
        self.console = Console(file=sys.stderr)
        self.bar: Progress | None = None
        self.task: Any = None
        self.last = (0.0, 0)
        self.started = 0.0
        self.steps, self.warm, self.told = 0, 0.0, time.perf_counter()

    def begin(self, state: State) -> None:
        """Start the timer, and the bar on a terminal."""
        self.started = time.perf_counter()
        self.last = (self.started, state.global_step)
        if self.console.is_terminal and not self.quiet and processes.is_main():
            self.bar = _Bar(self.console)
            self.task = self.bar.add_task(self.title, total=state.max_steps, completed=state.global_step, note="")
            self.bar.start()

    def step(self, state: State) -> None:
        """Update the bar. Without a bar, print the estimated duration after a few steps, and later the step if nothing else was printed."""
        self.steps += 1
        if self.steps == WARM_UP:
            self.warm = time.perf_counter()
        elif self.steps == WARM_UP + TIMED and not self.bar and processes.is_main():
            seconds, left = (time.perf_counter() - self.warm) / TIMED, state.max_steps - state.global_step
            self.tell(f"{seconds:.2g} s/step: about {duration(left * seconds)} for the {left} steps left, without validation")
        elif time.perf_counter() - self.told > EVERY and not self.bar and processes.is_main():
            self.tell(f"step {state.global_step}/{state.max_steps}")
        if self.bar:
            self.bar.update(self.task, completed=state.global_step)

    def log(self, state: State, logs: dict[str, Any]) -> None:
        """Write one line for a log entry."""
        if not processes.is_main():
            return
        line = self.line(state, logs)
        if self.bar:
            self._write(line)
            self.bar.update(self.task, note=line.partition("  ")[2])
        else:
            self.say(line)

    def say(self, line: str) -> None:
        """Write one line to the log and, unless `quiet`, to the terminal."""
        self._write(line)
        self.tell(line)

    def tell(self, line: str) -> None:
        """Write one line to the terminal only, unless `quiet`."""
        self.told = time.perf_counter()
        if not self.quiet:
            # Progress goes to standard output, which users follow as a log; standard error is for problems.
            try:
                print(f"{self.title}: {line}", flush=True)
            except OSError as error:
                if error.errno not in _CLOSED:
                    raise
                self._nobody_reads()

    def _nobody_reads(self) -> None:
        """Treat a closed pipe as a closed terminal, so that the run saves before it ends; without that signal it goes on silently."""
        self.quiet = True
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if hasattr(signal, "SIGHUP"):
            signal.raise_signal(signal.SIGHUP)

    def _write(self, line: str) -> None:
        with self.log_file.open("a", encoding="utf-8") as stream:
            stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def line(self, state: State, logs: dict[str, Any]) -> str:
        """Format a log entry as one line."""
        numbers = {key: value for key, value in logs.items() if key != "epoch" and isinstance(value, (int, float))}
        parts = [f"{_SHORT.get(key, key.removeprefix('eval_'))} {value:.4g}" for key, value in numbers.items()]
        if "loss" in logs:
            now, step = time.perf_counter(), state.global_step
            elapsed, steps = now - self.last[0], step - self.last[1]
            self.last = (now, step)
            if steps:
                left = (state.max_steps - step) * elapsed / steps
                parts.append(f"{elapsed / steps:.3g} s/step, {left / 60:.0f} min left")
        return f"step {state.global_step}/{state.max_steps}  {'validation: ' if 'eval_accuracy' in logs else ''}{', '.join(parts)}"

    def end(self, state: State) -> None:
        """End the run; on a terminal, replace the bar with a summary table."""
        if self.bar:
            self.close()
            self.console.print(summary_table(self.title, state, time.perf_counter() - self.started))

    def close(self) -> None:
        """Stop the bar."""
        if self.bar:
            self.bar.stop()
            self.bar = None


def cut_log(log_file: Path, step: int) -> None:
    """Remove the lines that a killed run wrote after step `step`, where it resumes: they will be written again."""
    if log_file.exists():
        lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and (found := _STEP.search(line)) and int(found[1]) <= step]
        write_text(log_file, "".join(kept))


def summary_table(title: str, state: State, seconds: float) -> Table:
    """Table with steps, time, the last value of every logged number, and the best validation accuracy.

    Args:
        title: title of the run.
        state: state of the run.
        seconds: wall time since the run was started or resumed.
    """
    table = Table(title=Text(title), title_justify="left")
    table.add_column("measure")
    table.add_column("last", justify="right")
    last: dict[str, float] = {}
    for entry in state.log_history:
        last |= {key: value for key, value in entry.items() if isinstance(value, (int, float))}
    table.add_row("steps", f"{state.global_step} of {state.max_steps}")
    table.add_row("minutes", f"{seconds / 60:.1f}")
    for key, value in last.items():
        if key not in ("epoch", "step"):
            table.add_row(_SHORT.get(key, key.removeprefix("eval_")), f"{value:.4g}")
    if state.best_metric is not None:
        table.add_row("best validation accuracy", f"{100 * state.best_metric:.1f} %")
    return table
