"""The outcome of a suite in numbers: per variant and run the figures over seeds, and paired tests between runs."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kava.errors import UserError
from kava.experiment.multi_seed import Plan
from kava.results import Result, Row, by_steps, read_result, read_rows, result_path, rows_path
from kava.statistics import SeedSummary, mcnemar, pair_by_id, paired_bootstrap, summarise


@dataclass(frozen=True)
class Cell:
    """One run on one data set: a `SeedSummary` per measure, and the 95 % interval of the accuracy.

    With one seed the interval is Wilson's over questions; with several it is Student's t over seeds. `by_steps` is the accuracy by
    the number of steps of the problem, where the data set knows it.
    """

    accuracy: SeedSummary
    interval: tuple[float, float]
    forward_passes: SeedSummary
    generated_tokens: SeedSummary
    seconds_per_question: SeedSummary
    cache_bytes: SeedSummary | None
    per_seed: dict[int, float]
    by_steps: dict[int, SeedSummary] = field(default_factory=dict)

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval within what an accuracy can be."""
        low, high = self.interval
        return max(low, 0.0), min(high, 1.0)


Key = tuple[str, str, str]


def read_cells(plans: Mapping[tuple[str, str], Plan]) -> dict[Key, Cell]:
    """A cell per (variant, run, data set) of which every seed is done."""
    cells = {}
    for (variant, run), plan in plans.items():
        for dataset in plan.datasets:
            try:
                results = {seed: read_result(result_path(plan.seed_dir(seed), dataset)) for seed in plan.seeds}
            except UserError:
                continue
            cells[variant, run, dataset] = _cell(results, _by_steps(plan, dataset))
    return cells


def _by_steps(plan: Plan, dataset: str) -> dict[int, SeedSummary]:
    shares: dict[int, list[float]] = {}
    for seed in plan.seeds:
        for steps, rows in by_steps(_rows(plan, dataset, seed)).items():
            shares.setdefault(steps, []).append(sum(row.correct for row in rows) / len(rows))
    return {steps: summarise(found) for steps, found in shares.items()}


def _rows(plan: Plan, dataset: str, seed: int) -> list[Row]:
    return read_rows(rows_path(result_path(plan.seed_dir(seed), dataset)))


def _cell(results: Mapping[int, Result], steps: dict[int, SeedSummary]) -> Cell:
    metrics = [result.metrics for result in results.values()]
    accuracy = summarise([m.accuracy for m in metrics])
    low, high = metrics[0].accuracy_ci95
    cache = [m.cache_bytes_per_question for m in metrics if m.cache_bytes_per_question is not None]
    return Cell(
        accuracy=accuracy,
        interval=accuracy.ci95 or (low, high),
        forward_passes=summarise([m.forward_passes for m in metrics]),
        generated_tokens=summarise([m.generated_tokens for m in metrics]),
        seconds_per_question=summarise([m.seconds_per_question for m in metrics]),
        cache_bytes=summarise(cache) if cache else None,
        per_seed={seed: result.metrics.accuracy for seed, result in results.items()},
        by_steps=steps,
    )


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same questions: difference of the mean accuracies, bootstrap over questions, McNemar per seed."""

    variant: str
    dataset: str
    first: str
    second: str
    difference: float
    interval: tuple[float, float]
    p_value: float
    mcnemar_p: dict[int, float]


def compare_runs(plans: Mapping[tuple[str, str], Plan], cells: Mapping[Key, Cell], first: str, seconds: Sequence[str]) -> list[Comparison]:
    """`first` against each of `seconds`, wherever both are done."""
    found = []

    @functools.cache
    def against(variant: str, dataset: str) -> dict[int, dict[str, float]]:
        return _correct(plans[variant, first], dataset)

    for variant, run, dataset in cells:
        if run in seconds and run != first and (variant, first, dataset) in cells:
            a, b = against(variant, dataset), _correct(plans[variant, run], dataset)
            found.append(_comparison(variant, dataset, first, run, a, b))
    return found


def _comparison(
    variant: str, dataset: str, first: str, second: str, a: dict[int, dict[str, float]], b: dict[int, dict[str, float]]
) -> Comparison:
    pairs = {seed: pair_by_id(a[seed], b[seed], first, second) for seed in a if seed in b}
    mean_a, mean_b = ([sum(column) / len(pairs) for column in zip(*side, strict=True)] for side in zip(*pairs.values(), strict=True))
    test = paired_bootstrap(mean_a, mean_b)
    p_values = {seed: mcnemar([mark == 1 for mark in x], [mark == 1 for mark in y]).p_value for seed, (x, y) in pairs.items()}
    return Comparison(variant, dataset, first, second, test.difference, test.ci95, test.p_value, p_values)


def _correct(plan: Plan, dataset: str) -> dict[int, dict[str, float]]:
    """Seed -> question id -> 1 for a right answer, else 0."""
    return {seed: {row.id: float(row.correct) for row in _rows(plan, dataset, seed)} for seed in plan.seeds}


def as_record(title: str, cells: Mapping[Key, Cell], comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Everything as plain JSON values."""
    return {
        "title": title,
        "cells": [{"variant": v, "run": r, "dataset": d, **asdict(cell)} for (v, r, d), cell in cells.items()],
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }
