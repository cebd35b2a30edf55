"""A live view of the runs of a suite on a terminal: a bar per run, read off the `train.log` that each writes."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kava.experiment.multi_seed import Plan
from kava.results import TRAINING_DONE

TRAIN_LOG = "train.log"
LINES_KEPT = 4
# Characters of a bar: name, steps and the first numbers fit beside it in a terminal of 80.
_BAR = 12
_STEP = re.compile(r"step (\d+)/(\d+)  (.*)")
_TAIL_BYTES = 600


class Board:
    """Shows runs as they go; on anything but a terminal it prints plain lines.

    Args:
        plans: what is run.
        console: where to.
    """

    def __init__(self, plans: Sequence[Plan], console: Console) -> None:
        self.plans = plans
        self.console = console
        self.lines: list[str] = []
        self.live = Live(get_renderable=self._render, console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Callable[[str], None]:
        if not self.console.is_terminal:
            return lambda line: self.console.print(line, soft_wrap=True, markup=False, highlight=False)
        self.live.start()
        return self.lines.append

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column(width=_BAR)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for plan in self.plans:
            for seed in plan.seeds:
                table.add_row(f"{plan.label} seed {seed}", *_state(plan.seed_dir(seed)))
        return Group(table, *(Text(line, style="dim") for line in self.lines[-LINES_KEPT:]))


def _state(directory: Path) -> tuple[RenderableType, str]:
    """A bar and a note for one run."""
    if (directory / TRAINING_DONE).exists():
        finished = sorted(path.stem.removeprefix("results_") for path in directory.glob("results_*.yaml"))
        return ProgressBar(1, 1, width=_BAR), "trained; evaluated on " + ", ".join(finished) if finished else "trained; evaluating"
    match = _STEP.search(_last_line(directory / TRAIN_LOG))
    if match is None:
        return ProgressBar(1, 0, width=_BAR), "starting" if directory.exists() else "waiting"
    step, total, note = match.groups()
    return ProgressBar(int(total), int(step), width=_BAR), f"{step}/{total}  {note}"


def _last_line(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return stream.read().decode("utf-8", errors="replace").strip().rpartition("\n")[2]
    except OSError:
        return ""
