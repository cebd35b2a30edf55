"""Run a suite and write what it gave: an aggregate per run, `summary.json`, `tables.md` (the same on the terminal) and `accuracy.svg`.

The aggregates are what `format_results`, `compare` and `report` read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from kava.errors import UserError, nearest
from kava.experiment.collect import collect_all
from kava.experiment.multi_seed import Plan
from kava.experiment.progress_view import run_all
from kava.experiment.suite import Suite, plans_of, read_suite
from kava.experiment.suite_figure import write_figure
from kava.report.group import Group
from kava.report.paired import comparison_table, paired
from kava.report.reference import load_reference
from kava.report.steps import step_rows
from kava.report.table import Table, as_markdown, show
from kava.report.tables import relevant, result_tables, steps_table
from kava.results import checked_name, write_text
from kava.results.statistics import PairedDifference

T = TypeVar("T")
Key = tuple[str, str]
# Variant, run that the main one is compared with, data set, difference.
Compared = tuple[str, str, str, PairedDifference]

SUMMARY = "summary.json"
TABLES = "tables.md"
FIGURE = "accuracy.svg"


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


def reproduce(
    path: Path, output_dir: Path, overrides: dict[str, Any], *, seeds: Sequence[int] = (), variants: Sequence[str] = (),
    runs: Sequence[str] = (), datasets: Sequence[str] = (), parallel: int = 0, quick_test: bool = False, tables_only: bool = False,
) -> Reproduced:  # fmt: skip
    """Run what is not done, then write the tables of all that is; the arguments are those of `kava reproduce --help`.

    Raises:
        UserError: the suite is broken, has no such variant, or nothing of it is finished.
    """
    suite = chosen(read_suite(path), seeds, variants, runs, datasets)
    owner = f"{checked_name(suite.runs_of, 'suite')}{'_quick_test' if quick_test else ''}" if suite.runs_of else output_dir.name
    runs_dir = output_dir.parent / owner
    plans = plans_of(suite, runs_dir, overrides, short=quick_test)
    console = Console(highlight=False)
    exit_code = 0 if tables_only else run_all(plans, parallel, console)
    groups = collect_all(plans, output_dir.name, console)
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


def chosen(suite: Suite, seeds: Sequence[int], variants: Sequence[str], runs: Sequence[str], datasets: Sequence[str] = ()) -> Suite:
    """The part of a suite that is asked for; all of it where nothing is.

    Raises:
        UserError: the suite has no such variant, run or data set.
    """
    kept = {"variants": _only(variants, suite.variants, "variant"), "runs": _only(runs, suite.runs, "run")}
    # A suite that names no data sets has those of its configuration, which `plans_of` knows.
    sets = _only(datasets, dict.fromkeys(suite.datasets or datasets), "data set")
    return suite.model_copy(update={"seeds": list(seeds) or suite.seeds, "datasets": list(sets) or None, **kept})


def _only(names: Sequence[str], existing: dict[str, T], what: str) -> dict[str, T]:
    """Those that are named, in the suite's order; all, where none is."""
    for name in names:
        if name not in existing:
            raise UserError(f"the suite has no {what} '{name}'{nearest(name, existing)}")
    return {name: value for name, value in existing.items() if not names or name in names}
