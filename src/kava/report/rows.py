"""The rows of the paper's two tables, ours beside the reference rows, free of any output format.

accuracy_rows(aggregates, reference)  ->  Table 1;    efficiency_rows(...)  ->  Table 2
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kava.experiment.aggregate import DEFAULT_DATASETS
from kava.experiment.aggregate_file import Aggregate
from kava.report.reference import Reference, ReferenceRow, last_part

UNCONFIRMED = "†"
R = TypeVar("R")


@dataclass(frozen=True)
class AccuracyRow:
    """One line of Table 1; `cells` maps a data set to ``56.5 (0.4)`` in percent."""

    model: str
    train_dataset: str
    method: str
    cells: dict[str, str]
    source: str
    ours: bool


@dataclass(frozen=True)
class EfficiencyRow:
    """One line of Table 2: per question of one data set, ``6.9 (0.1)``; '--' where nothing is known."""

    model: str
    train_dataset: str
    dataset: str
    forward_passes: str
    generated_tokens: str
    seconds: str
    method: str
    source: str
    ours: bool


def number(mean: float | None, std: float | None = None, digits: int = 1) -> str:
    """``56.5 (0.4)``; without a deviation ``56.5``; '--' for nothing."""
    if mean is None:
        return "--"
    return f"{mean:.{digits}f}" if std is None else f"{mean:.{digits}f} ({std:.{digits}f})"


def dataset_columns(aggregates: Iterable[Aggregate]) -> list[str]:
    """The guide's three test sets, then whatever else was measured."""
    return list(dict.fromkeys([*DEFAULT_DATASETS, *(name for aggregate in aggregates for name in aggregate.datasets)]))


def accuracy_rows(aggregates: Sequence[Aggregate], reference: Reference) -> list[list[AccuracyRow]]:
    """Groups of one model and training set: our rows, then the reference rows; groups without a row of ours come last."""
    ours: list[tuple[tuple[str, str], AccuracyRow]] = []
    for aggregate in aggregates:
        cells = {
            name: number(100 * data.accuracy_mean, None if data.accuracy_std is None else 100 * data.accuracy_std)
            for name, data in aggregate.datasets.items()
        }
        names = (reference.model_label(aggregate.model), reference.dataset_label(aggregate.train_dataset))
        ours.append((_group(aggregate), AccuracyRow(*names, reference.method_label(aggregate.method), cells, _our_source(aggregate), True)))
    published: dict[tuple[str, ...], dict[str, str]] = {}
    for row in reference.rows:
        if row.accuracy is not None:
            # What makes a row an ablation stands in its source.
            key = (row.model, row.train_dataset, row.method, row.where, str(row.settings))
            published.setdefault(key, {})[row.dataset] = _published(row, row.accuracy, row.accuracy_std)
    theirs = [
        (
            (model, data),
            AccuracyRow(reference.model_label(model), reference.dataset_label(data), reference.method_label(method), cells, source, False),
        )
        for (model, data, method, source, _), cells in published.items()
    ]
    return _grouped(ours, theirs)


def efficiency_rows(aggregates: Sequence[Aggregate], reference: Reference) -> list[list[EfficiencyRow]]:
    """As `accuracy_rows`, with a row per data set."""
    ours = [
        (
            _group(aggregate),
            EfficiencyRow(
                reference.model_label(aggregate.model),
                reference.dataset_label(aggregate.train_dataset),
                reference.dataset_label(name),
                number(data.forward_passes_mean, data.forward_passes_std),
                number(data.generated_tokens_mean, data.generated_tokens_std),
                number(data.seconds_per_question_mean, data.seconds_per_question_std, digits=3),
                reference.method_label(aggregate.method),
                _our_source(aggregate),
                True,
            ),
        )
        for aggregate in aggregates
        for name, data in aggregate.datasets.items()
    ]
    theirs = [
        (
            (row.model, row.train_dataset),
            EfficiencyRow(
                reference.model_label(row.model),
                reference.dataset_label(row.train_dataset),
                reference.dataset_label(row.dataset),
                _published(row, row.forward_passes, row.forward_passes_std),
                number(None),
                number(None),
                reference.method_label(row.method),
                row.where,
                False,
            ),
        )
        for row in reference.rows
        if row.forward_passes is not None
    ]
    return _grouped(ours, theirs)


def _group(aggregate: Aggregate) -> tuple[str, str]:
    return last_part(aggregate.model), last_part(aggregate.train_dataset)


def _our_source(aggregate: Aggregate) -> str:
    seeds = "1 seed" if aggregate.num_seeds == 1 else f"{aggregate.num_seeds} seeds"
    return f"ours: {aggregate.model_name}, {seeds}"


def _published(row: ReferenceRow, mean: float | None, std: float | None) -> str:
    return number(mean, std) + (UNCONFIRMED if row.unconfirmed else "")


def _grouped(ours: list[tuple[tuple[str, str], R]], theirs: list[tuple[tuple[str, str], R]]) -> list[list[R]]:
    groups: dict[tuple[str, str], list[R]] = {}
    for key, row in [*ours, *theirs]:
        groups.setdefault(key, []).append(row)
    return list(groups.values())
