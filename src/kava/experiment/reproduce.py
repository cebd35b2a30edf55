"""Run a suite and write its results: an aggregate per run, `summary.json`, `tables.md` (also printed) and `accuracy.svg`.

`format_results` and `compare` read the aggregates. A suite with `table: efficiency` has no `accuracy.svg`.
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
from kava.report.grouping import by_steps
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
    """Outcome of a suite.

    Attributes:
        plans, groups: by variant and run; only runs whose seeds are all done have a group.
        output_dir: directory of the tables, and of the runs unless the suite has `runs_of`.
        exit_code: 0, 1 if a run failed, or the code of the step that a signal stopped.
    """

    plans: Mapping[Key, Plan]
    groups: Mapping[Key, Group]
    output_dir: Path
    exit_code: int


def reproduce(
    path: Path, output_dir: Path, overrides: dict[str, Any], *, seeds: Sequence[int] = (), variants: Sequence[str] = (),
    runs: Sequence[str] = (), datasets: Sequence[str] = (), parallel: int = 0, quick_test: bool = False, tables_only: bool = False,
) -> Reproduced:  # fmt: skip
    """Run what is not done yet, then write the tables of all finished runs; the arguments are those of `kava reproduce --help`.

    Raises:
        UserError: the suite is broken, has no such variant, run or data set, or none of its runs is finished.
    """
    suite = chosen(read_suite(path), seeds, variants, runs, datasets)
    owner = f"{checked_name(suite.runs_of, 'suite')}{'_quick_test' if quick_test else ''}" if suite.runs_of else output_dir.name
    runs_dir = output_dir.parent / owner
    plans = plans_of(suite, runs_dir, overrides, short=quick_test, source=f"suite {path}")
    console = Console(highlight=False)
    exit_code = 0 if tables_only else run_all(plans, parallel, console)
    groups = collect_all(plans, output_dir.name, console)
    if not groups and exit_code:
        return Reproduced(plans, {}, output_dir, exit_code)  # the errors are already printed
    if not groups:
        raise UserError(f"no run of {path} is finished in {runs_dir}, so there is no table to make")
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
    """Return, per variant, accuracy, cost on the first data set and accuracy by steps; then the differences to the main run."""
    reference, tables = load_reference(), []
    for variant in dict.fromkeys(variant for variant, _ in groups):
        labelled = [(group, run) for (own, run), group in groups.items() if own == variant]
        title = suite.title if variant == "all" else f"{suite.title}: {variant}"
        first = next(iter(labelled[0][0].aggregate.datasets))
        tables += result_tables(labelled, reference, relevant(labelled, reference), title, [first])
        datasets = dict.fromkeys(name for group, _ in labelled for name in group.rows)
        series = {(dataset, ""): rows for dataset in datasets if (rows := by_steps(labelled, dataset))}
        if series and suite.table != "efficiency":
            tables.append(steps_table(series, reference, f"{title}, by number of steps"))
    if compared:
        tables.append(comparison_table([(variant, f"{main} - {run}", name, test) for variant, run, name, test in compared], reference))
    return tables


def _compared(groups: Mapping[Key, Group], main: str) -> list[Compared]:
    """Compare the main run with every other run, where both are done."""
    return [
        (variant, run, dataset, test)
        for (variant, run), group in groups.items()
        if run != main and (variant, main) in groups
        for dataset in group.aggregate.datasets
        if (test := paired(groups[variant, main], group, dataset)) is not None
    ]


def _record(title: str, groups: Mapping[Key, Group], main: str, compared: Sequence[Compared]) -> dict[str, Any]:
    """Return the content of `summary.json`."""
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
    """Return the requested part of a suite; all of it if nothing is requested.

    Raises:
        UserError: the suite has no such variant, run or data set.
    """
    kept = {"variants": _only(variants, suite.variants, "variant"), "runs": _only(runs, suite.runs, "run")}
    # A suite that names no data sets uses those of its configuration; `plans_of` checks the names against these.
    sets = _only(datasets, dict.fromkeys(suite.datasets or datasets), "data set")
    return suite.model_copy(update={"seeds": list(seeds) or suite.seeds, "datasets": list(sets) or None, **kept})


def _only(names: Sequence[str], existing: dict[str, T], what: str) -> dict[str, T]:
    """Return the named entries in the order of the suite; all entries if no name is given."""
    for name in names:
        if name not in existing:
            raise UserError(f"the suite has no {what} '{name}'{nearest(name, existing)}")
    return {name: value for name, value in existing.items() if not names or name in names}
