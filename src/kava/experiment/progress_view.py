"""Run plans and show their progress: on a terminal, a bar per run, read from the `train.log` that each run writes."""

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from kava.experiment.child_processes import PROGRESS, read_end, visible_gpus
from kava.experiment.multi_seed import RUN_LOG, Plan, exit_code, run_plans
from kava.results import TRAINING_DONE

TRAIN_LOG = "train.log"
# Width of a bar in characters: the name, steps and first metrics fit next to it in a terminal with 80 columns.
_BAR = 12
_STEP = re.compile(r"step (\d+)/(\d+)  (.*)")
_TAIL_BYTES = 600


def run_all(plans: Mapping[tuple[str, str], Plan], parallel: int, console: Console) -> int:
    """Run every seed of every plan, with a bar per run on a terminal and plain lines elsewhere.

    Args:
        plans: plans by variant and run; the last one is the method of interest and takes longest, so it starts first.
        parallel: number of seeds that run at the same time; 0: one per GPU, or without a GPU one per two CPU cores, at least two.
        console: console to print to.

    Returns:
        The exit code: 0, 1 if a run failed, or the code of the step that a signal stopped.
    """
    parallel = parallel or len(visible_gpus()) or max(2, (os.cpu_count() or 2) // 2)
    parallel = min(parallel, sum(len(plan.seeds) for plan in plans.values()))

    def say(line: str) -> None:
        # On a terminal the bars show the steps, and all other lines are printed above them.
        if not (console.is_terminal and PROGRESS.search(line)):
            console.print(line, soft_wrap=True, markup=False, highlight=False)

    live = Live(get_renderable=lambda: _board(plans.values()), console=console, refresh_per_second=2, transient=True)
    with live if console.is_terminal else nullcontext():
        outcomes, stopped = run_plans(list(plans.values())[::-1], parallel, say)
    for outcome in outcomes:
        if outcome.problem:
            console.print(f"{outcome.directory}: {outcome.problem}", style="red", markup=False, soft_wrap=True)
        if outcome.tail:
            console.print(f"the last lines of {outcome.directory / RUN_LOG}:\n{outcome.tail}", markup=False, soft_wrap=True)
    return exit_code(outcomes, stopped)


def _board(plans: Iterable[Plan]) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(width=_BAR)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for plan in plans:
        for seed in plan.seeds:
            table.add_row(f"{plan.label} seed {seed}", *_state(plan.seed_dir(seed)))
    return table


def _state(directory: Path) -> tuple[RenderableType, str]:
    """Return a bar and a note for one run."""
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
        return read_end(path, _TAIL_BYTES).strip().rpartition("\n")[2]
    except OSError:
        return ""
