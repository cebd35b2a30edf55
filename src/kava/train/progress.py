"""What a person sees of a run: a live bar on a terminal, plain lines elsewhere, and the same lines in `train.log`."""

import re
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
# Steps that are slow because they are the first, and those that the estimate of a run's hours rests on.
WARM_UP, TIMED = 2, 3
_STEP = re.compile(r" step (\d+)/")
_SHORT = {"student_ce": "ce", "teacher_ce": "teacher", "grad_norm": "grad", "learning_rate": "lr", "examples_per_second": "examples/s"}


class _Bar(Progress):
    """Name, bar, steps and time left in one line, whatever its width; the newest numbers in a line of their own below."""

    def __init__(self, console: Console) -> None:
        name = TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=2))
        # A bar without a width of its own takes what the others leave.
        bar = BarColumn(bar_width=None, table_column=Column(ratio=1))
        super().__init__(name, bar, MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left"), console=console, expand=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            if task.fields["note"]:
                yield Text(task.fields["note"], style="dim")


class Report:
    """Logs to `train.log` and to the terminal.

    Args:
        log_file: appended to, one line per log entry.
        title: what the bar is called.
        quiet: nothing on the terminal.
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
        """Open the bar."""
        self.started = time.perf_counter()
        self.last = (self.started, state.global_step)
        if self.console.is_terminal and not self.quiet and processes.is_main():
            self.bar = _Bar(self.console)
            self.task = self.bar.add_task(self.title, total=state.max_steps, completed=state.global_step, note="")
            self.bar.start()

    def step(self, state: State) -> None:
        """Move the bar; after a few steps say how long the run will take."""
        self.steps += 1
        if self.steps == WARM_UP:
            self.warm = time.perf_counter()
        elif self.steps == WARM_UP + TIMED and not self.bar and processes.is_main():
            seconds, left = (time.perf_counter() - self.warm) / TIMED, state.max_steps - state.global_step
            self.tell(f"{seconds:.2g} s/step: about {duration(left * seconds)} for the {left} steps left, validations apart")
        elif time.perf_counter() - self.told > EVERY and not self.bar and processes.is_main():
            self.tell(f"step {state.global_step}/{state.max_steps}")
        if self.bar:
            self.bar.update(self.task, completed=state.global_step)

    def log(self, state: State, logs: dict[str, Any]) -> None:
        """Write one line."""
        if not processes.is_main():
            return
        line = self.line(state, logs)
        if self.bar:
            self._write(line)
            self.bar.update(self.task, note=line.partition("  ")[2])
        else:
            self.say(line)

    def say(self, line: str) -> None:
        """Write one line to the log and, where no bar is on it, to the terminal."""
        self._write(line)
        self.tell(line)

    def tell(self, line: str) -> None:
        """Write one line to the terminal alone."""
        self.told = time.perf_counter()
        if not self.quiet:
            # Standard output, which is the log that people follow; standard error is for what went wrong.
            print(f"{self.title}: {line}", flush=True)

    def _write(self, line: str) -> None:
        with self.log_file.open("a", encoding="utf-8") as stream:
            stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def line(self, state: State, logs: dict[str, Any]) -> str:
        """A log entry in one line."""
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
        """The run is over: sum up on a terminal."""
        if self.bar:
            self.close()
            self.console.print(summary_table(self.title, state, time.perf_counter() - self.started))

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self.bar:
            self.bar.stop()
            self.bar = None


def cut_log(log_file: Path, step: int) -> None:
    """Leave out the lines that a killed run wrote after the checkpoint that is gone on from: they are written again."""
    if log_file.exists():
        lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and (found := _STEP.search(line)) and int(found[1]) <= step]
        write_text(log_file, "".join(kept))


def summary_table(title: str, state: State, seconds: float) -> Table:
    """Steps, time, and of every logged number the last value, and the best validation accuracy.

    Args:
        title: of the run.
        state: of the run.
        seconds: wall time of this process's part of the run.
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
