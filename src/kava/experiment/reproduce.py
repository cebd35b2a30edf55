"""Run a suite and write what it gave: `summary.json`, `tables.md` (the same on the terminal) and `accuracy.svg`."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from kava.errors import UserError, nearest
from kava.experiment.child_processes import visible_gpus
from kava.experiment.multi_seed import RUN_LOG, Plan, SeedOutcome, run_plans
from kava.experiment.multi_seed import exit_code as run_exit_code
from kava.experiment.progress_view import Board
from kava.experiment.suite import Suite, plans_of, read_suite
from kava.experiment.suite_figure import write_figure
from kava.experiment.suite_tables import as_markdown, as_rich, comparison_table, efficiency_tables, steps_tables, suite_tables
from kava.experiment.summary import Cell, Comparison, Key, as_record, compare_runs, read_cells
from kava.results import checked_name, write_text

T = TypeVar("T")

SUMMARY = "summary.json"
TABLES = "tables.md"
FIGURE = "accuracy.svg"


@dataclass(frozen=True)
class Options:
    """How to run a suite; see `kava reproduce --help`."""

    output_dir: str
    seeds: list[int] = field(default_factory=list)
    variants: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    parallel: int = 0
    flags: list[str] = field(default_factory=list)
    tables_only: bool = False


@dataclass(frozen=True)
class Reproduced:
    """What a suite gave.

    Attributes:
        plans, cells, comparisons: by variant and run.
        output_dir: where the runs and tables are.
        exit_code: 0, 1 where a run failed, or the code of the step that a signal stopped.
    """

    plans: Mapping[tuple[str, str], Plan]
    cells: Mapping[Key, Cell]
    comparisons: list[Comparison]
    output_dir: Path
    exit_code: int


def reproduce(path: Path, options: Options, overrides: dict[str, Any]) -> Reproduced:
    """Run what is not done, then write the tables of all that is.

    Raises:
        UserError: the suite is broken, has no such variant, or nothing of it is finished.
    """
    suite = _chosen(read_suite(path), options)
    output_dir = Path(options.output_dir)
    runs_dir = output_dir.parent / checked_name(suite.runs_of, "suite") if suite.runs_of else output_dir
    plans = plans_of(suite, runs_dir, overrides, options.flags)
    console = Console(highlight=False)
    exit_code = 0 if options.tables_only else _run(plans, options.parallel, console)
    cells = read_cells(plans)
    if not cells and exit_code:
        return Reproduced(plans, {}, [], output_dir, exit_code)  # what went wrong has been said
    if not cells:
        raise UserError(f"no run of {path} is finished in {output_dir}, so there is no table to make")
    written, comparisons = [output_dir / SUMMARY, output_dir / TABLES], []
    if suite.table == "efficiency":
        tables = efficiency_tables(suite.title, cells)
    else:
        tables = suite_tables(suite.title, cells) + steps_tables(suite.title, cells)
        comparisons = compare_runs(plans, cells, suite.main or next(reversed(suite.runs)), list(suite.runs))
        if comparisons:
            tables.append(comparison_table(comparisons))
        written.append(output_dir / FIGURE)
        write_figure(output_dir / FIGURE, cells)
    write_text(output_dir / SUMMARY, json.dumps(as_record(suite.title, cells, comparisons), indent=2) + "\n")
    write_text(output_dir / TABLES, "\n".join(as_markdown(*table) for table in tables))
    for table in tables:
        console.print(as_rich(*table))
    console.print(f"written: {', '.join(map(str, written))}", soft_wrap=True)
    return Reproduced(plans, cells, comparisons, output_dir, exit_code)


def _chosen(suite: Suite, options: Options) -> Suite:
    """The part of a suite that is asked for."""
    return suite.model_copy(
        update={
            "seeds": options.seeds or suite.seeds,
            "variants": _only(options.variants, suite.variants, "variant"),
            "runs": _only(options.runs, suite.runs, "run"),
        }
    )


def _only(names: list[str], existing: dict[str, T], what: str) -> dict[str, T]:
    """Those that are named, in the suite's order; all, where none is."""
    for name in names:
        if name not in existing:
            raise UserError(f"the suite has no {what} '{name}'{nearest(name, existing)}")
    return {name: value for name, value in existing.items() if not names or name in names}


def _run(plans: Mapping[tuple[str, str], Plan], parallel: int, console: Console) -> int:
    parallel = parallel or len(visible_gpus()) or max(2, (os.cpu_count() or 2) // 2)
    labels = [("" if variant == "all" else f"{variant} ") + run for variant, run in plans]
    with Board(list(zip(labels, plans.values(), strict=True)), console) as say:
        # The last run is the suite's own method, and its longest: it starts first, so that no core waits for it at the end.
        outcomes, stopped = run_plans(list(plans.values())[::-1], parallel, say)
    for outcome in outcomes:
        _show_failure(outcome, console)
    return run_exit_code(outcomes, stopped)


def _show_failure(outcome: SeedOutcome, console: Console) -> None:
    if outcome.problem:
        console.print(f"{outcome.directory}: {outcome.problem}", style="red", markup=False, soft_wrap=True)
    if outcome.tail:
        console.print(f"the last lines of {outcome.directory / RUN_LOG}:\n{outcome.tail}", markup=False, soft_wrap=True)
