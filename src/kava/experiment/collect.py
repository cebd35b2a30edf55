"""Collect the results of runs, for a suite and for several seeds (a suite of one run), and write the aggregate next to the runs.

group, problems = collect(plan, "equation/kava")
write_aggregate(plan, group)      # the file that format_results and compare read; aggregate_multi_seed writes the same
"""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from kava.config import renewed_fingerprint
from kava.errors import UserError
from kava.experiment.multi_seed import Plan, read_plan_result
from kava.report.aggregate_file import AGGREGATE_JSON, AGGREGATE_YAML, Aggregate, read_aggregates, write_aggregates
from kava.report.group import Group, group_of
from kava.results import Verified, result_path


def collect_all(plans: Mapping[tuple[str, str], Plan], path: str, console: Console) -> dict[tuple[str, str], Group]:
    """Return the finished runs, write an aggregate next to each and print what is left out; `path` is their directory's name in tables."""
    groups = {}
    for (variant, run), plan in plans.items():
        group, problems = collect(plan, path, run if variant == "all" else f"{variant}/{run}")
        for problem in problems:
            console.print(f"left out: {problem}", style="yellow", markup=False, soft_wrap=True)
        if group is not None:
            write_aggregate(plan, group)
            groups[variant, run] = group
    return groups


def collect(plan: Plan, path: str, model_name: str | None = None) -> tuple[Group | None, list[str]]:
    """Return the seeds of a plan on the data sets that all of them have, and what is left out and why.

    Args:
        plan: plan that was run; results of another configuration, seed, data set or checkpoint are refused.
        path: name of the group in tables.
        model_name: as in `combine`.
    """
    results: dict[str, dict[str, Verified]] = {str(plan.seed_dir(seed)): {} for seed in plan.seeds}
    problems, unfinished = [], []
    for dataset in plan.datasets:
        if not all(result_path(plan.seed_dir(seed), dataset).exists() for seed in plan.seeds):
            unfinished.append(dataset)
            continue
        try:
            found = {str(plan.seed_dir(seed)): read_plan_result(plan, seed, dataset) for seed in plan.seeds}
        except UserError as error:
            problems.append(str(error))
            continue
        for directory, verified in found.items():
            results[directory][dataset] = verified
    if unfinished:
        problems.append(f"{plan.output_dir}: not every seed is done on {', '.join(unfinished)}")
    if not any(results.values()):
        return None, problems
    try:
        group, more = group_of(path, results, model_name)
    except UserError as error:
        return None, [*problems, str(error)]
    return group, problems + more


def _holds_more(path: Path, name: str, aggregate: Aggregate) -> bool:
    try:
        there = read_aggregates(path).get(name)
    except UserError:
        return False
    if there is None or renewed_fingerprint(there.config_fingerprint, there.config) != aggregate.config_fingerprint:
        return False
    checkpoints = {run.seed: run.checkpoint for run in there.runs}
    same = all(checkpoints.get(run.seed) == run.checkpoint for run in aggregate.runs)
    seeds, datasets = set(aggregate.seeds) < set(there.seeds), set(aggregate.datasets) < set(there.datasets)
    return same and (seeds or datasets) and set(aggregate.seeds) <= set(there.seeds) and set(aggregate.datasets) <= set(there.datasets)


def write_aggregate(plan: Plan, group: Group) -> Path:
    """Write `aggregated_results.{yaml,json}` in the directory that holds the seeds, and return the path of the YAML file.

    A file that holds these seeds and data sets and more, of the same checkpoints, stays: this was a selection.
    """
    path = plan.output_dir / AGGREGATE_YAML
    if _holds_more(path, plan.name, group.aggregate):
        return path
    write_aggregates({plan.name: group.aggregate}, plan.output_dir / AGGREGATE_JSON, path)
    return path
