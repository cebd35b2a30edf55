"""Group the runs that share a figure: those with the same model, training data and form of the traces.

for scope, runs in by_scope(labelled, reference): points(runs, "gsm8k", styles, reference)
"""

from collections.abc import Mapping

from kava.report import tables
from kava.report.group import Group
from kava.report.html_figures import Point, Style
from kava.report.reference import Reference
from kava.report.steps import StepRow, step_rows


def by_scope(labelled: tables.Labelled, reference: Reference) -> list[tuple[str, tables.Labelled]]:
    """Group runs by model, training data and form of the traces ("scope"), with unique labels within each scope.

    The name of a scope holds only the parts that differ between scopes; it is empty if there is one scope.
    """
    scopes: dict[tuple[str, ...], list[tuple[Group, str]]] = {}
    for group, label in tables.told_apart(labelled):
        scopes.setdefault(group.family[:3], []).append((group, label))
    varying = [len(set(values)) > 1 for values in zip(*scopes, strict=True)]
    named: list[tuple[str, tables.Labelled]] = []
    for (model, data, form), own in scopes.items():
        parts = (reference.model_label(model), reference.dataset_label(data), form)
        named.append((", ".join(part for part, varies in zip(parts, varying, strict=True) if varies), own))
    return named


def chance(labelled: tables.Labelled, dataset: str) -> float | None:
    """Return `Group.chance` of the first run that has per-question results on the data set; None if no run has."""
    return next((found for group, _ in labelled if (found := group.chance(dataset)) is not None), None)


def points(labelled: tables.Labelled, dataset: str, styles: Mapping[str, Style], reference: Reference) -> list[Point]:
    """Return cost and accuracy of every run on a test set, and the reference points that have both; empty if no run has the test set."""
    own = [
        Point(label, styles[label], data.forward_passes_mean, 100 * data.accuracy_mean, tables.interval_of(data))
        for group, label in labelled
        if (data := group.aggregate.datasets.get(dataset)) is not None
    ]
    return [*own, *_reference_points(labelled, dataset, styles, reference)] if own else []


def _reference_points(labelled: tables.Labelled, dataset: str, styles: Mapping[str, Style], reference: Reference) -> list[Point]:
    rows = [row for row in tables.relevant(labelled, reference) if row.dataset == dataset and not row.settings]
    passes = {(row.source, row.method, row.model, row.train_dataset): row.forward_passes for row in rows if row.forward_passes}
    found = []
    for row in rows:
        cost = passes.get((row.source, row.method, row.model, row.train_dataset))
        if row.accuracy is not None and cost is not None:
            name = reference.method_label(row.method)
            found.append(Point(f"{name}, {row.source}", styles[name], cost, row.accuracy, None, ours=False))
    return found


def with_distinct_cost(labelled: tables.Labelled, methods: tables.Labelled) -> tables.Labelled:
    """Return the methods, and the ablations whose number of forward passes differs from their method's on every test set.

    The other ablations would all lie on one vertical line of the figure.
    """
    kept = list(methods)
    for group, label in labelled:
        costs = {name: data.forward_passes_mean for name, data in group.aggregate.datasets.items()}
        same = [
            abs(costs[name] - data.forward_passes_mean) < 0.5
            for other, _ in methods
            if other.family == group.family
            for name, data in other.aggregate.datasets.items()
            if name in costs
        ]
        if (group, label) not in kept and not any(same):
            kept.append((group, label))
    return kept


def by_steps(labelled: tables.Labelled, dataset: str) -> dict[str, list[StepRow]]:
    """Return label -> a row per number of steps, for the runs whose per-question files record the number of steps."""
    series = {label: step_rows(group.rows.get(dataset, {})) for group, label in labelled}
    return {label: rows for label, rows in series.items() if rows}
