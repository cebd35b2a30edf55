"""Run a suite and write what it gave: an aggregate per run, `summary.json`, `tables.md` (the same on the terminal) and `accuracy.svg`.

The aggregates are what `format_results`, `compare` and `report` read.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from kava.errors import UserError, nearest
from kava.experiment.child_processes import visible_gpus
from kava.experiment.collect import collect, write_aggregate
from kava.experiment.multi_seed import RUN_LOG, Plan, SeedOutcome, run_plans
from kava.experiment.multi_seed import exit_code as run_exit_code
from kava.experiment.progress_view import Board
from kava.experiment.suite import Suite, plans_of, read_suite
from kava.experiment.suite_figure import write_figure
from kava.report.group import Group
from kava.report.paired import comparison_table, paired
from kava.report.reference import load_reference
from kava.report.steps import step_rows
from kava.report.table import Table, as_markdown, show
from kava.report.tables import relevant, result_tables, steps_table
from kava.results import checked_name, write_text
from kava.statistics import PairedDifference

T = TypeVar("T")
Key = tuple[str, str]
# Variant, run that the main one is compared with, data set, difference.
Compared = tuple[str, str, str, PairedDifference]

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
        plans, groups: by variant and run; a group is there where every seed is done.
        output_dir: where the runs and tables are.
        exit_code: 0, 1 where a run failed, or the code of the step that a signal stopped.
    """

    plans: Mapping[Key, Plan]
    groups: Mapping[Key, Group]
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
    groups = _collect(plans, output_dir, console)
    if not groups and exit_code:
        return Reproduced(plans, {}, output_dir, exit_code)  # what went wrong has been said
    if not groups:
        raise UserError(f"no run of {path} is finished in {output_dir}, so there is no table to make")
    main = suite.main or next(reversed(suite.runs))
    compared = [] if suite.table == "efficiency" else _compared(groups, main)
    tables = _tables(suite, groups, main, compared)
    written = [output_dir / SUMMARY, output_dir / TABLES]
    write_text(output_dir / SUMMARY, json.dumps(_record(suite.title, groups, main, compared), indent=2) + "\n")
    write_text(output_dir / TABLES, "\n".join(map(as_markdown, tables)))
    if suite.table != "efficiency":
        written.append(output_dir / FIGURE)
        write_figure(output_dir / FIGURE, groups)
    show(tables, console)
    console.print(f"written: {', '.join(map(str, written))}, and aggregated_results.yaml beside each run", soft_wrap=True)
    return Reproduced(plans, groups, output_dir, exit_code)


def _collect(plans: Mapping[Key, Plan], output_dir: Path, console: Console) -> dict[Key, Group]:
    """The finished runs, with an aggregate beside each; what is left out is said."""
    groups = {}
    for (variant, run), plan in plans.items():
        name = run if variant == "all" else f"{variant}/{run}"
        group, problems = collect(plan, output_dir.name, name)
        for problem in problems:
            console.print(f"left out: {problem}", style="yellow", markup=False, soft_wrap=True)
        if group is not None:
            write_aggregate(plan, group)
            groups[variant, run] = group
    return groups


def _tables(suite: Suite, groups: Mapping[Key, Group], main: str, compared: Sequence[Compared]) -> list[Table]:
    """Per variant accuracy, cost on the first data set and accuracy by steps; then the differences to the main run."""
    reference, tables = load_reference(), []
    for variant in dict.fromkeys(variant for variant, _ in groups):
        labelled = [(group, run) for (own, run), group in groups.items() if own == variant]
        title = suite.title if variant == "all" else f"{suite.title}: {variant}"
        first = next(iter(labelled[0][0].aggregate.datasets))
        tables += result_tables(labelled, reference, relevant(labelled, reference), title, [first])
        datasets = dict.fromkeys(name for group, _ in labelled for name in group.rows)
        series = {
            (dataset, ""): rows
            for dataset in datasets
            if any((rows := {label: step_rows(group.rows.get(dataset, {})) for group, label in labelled}).values())
        }
        if series and suite.table != "efficiency":
            tables.append(steps_table(series, reference, f"{title}, by number of steps"))
    if compared:
        tables.append(comparison_table([(variant, f"{main} - {run}", name, test) for variant, run, name, test in compared], reference))
    return tables


def _compared(groups: Mapping[Key, Group], main: str) -> list[Compared]:
    """The main run against each other one, wherever both are done."""
    return [
        (variant, run, dataset, test)
        for (variant, run), group in groups.items()
        if run != main and (variant, main) in groups
        for dataset in group.aggregate.datasets
        if (test := paired(groups[variant, main], group, dataset)) is not None
    ]


def _record(title: str, groups: Mapping[Key, Group], main: str, compared: Sequence[Compared]) -> dict[str, Any]:
    """Everything as plain JSON values."""
    cells = [
        {"variant": variant, "run": run, "dataset": dataset}
        | data.model_dump(mode="json", exclude={"data", "per_seed"})
        | {
            "per_seed": {seed.seed: seed.accuracy for seed in data.per_seed},
            "by_steps": {row.steps: asdict(row) for row in step_rows(group.rows.get(dataset, {}))},
        }
        for (variant, run), group in groups.items()
        for dataset, data in group.aggregate.datasets.items()
    ]
    comparisons = [
        {"variant": variant, "dataset": dataset, "first": main, "second": run, **asdict(test)} for variant, run, dataset, test in compared
    ]
    return {"title": title, "cells": cells, "comparisons": comparisons}


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


def _run(plans: Mapping[Key, Plan], parallel: int, console: Console) -> int:
    parallel = parallel or len(visible_gpus()) or max(2, (os.cpu_count() or 2) // 2)
    with Board(list(plans.values()), console) as say:
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
