"""Our numbers against the reference numbers, cell by cell.

cells = compare(aggregates, load_reference(), "paper")
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from kava.experiment.aggregate_file import Aggregate
from kava.report.reference import Reference, Source


@dataclass(frozen=True)
class Comparison:
    """One measured figure beside a published one; accuracy in percent. `within` is None where the guide names no tolerance."""

    config: str
    dataset: str
    measure: Literal["accuracy", "forward_passes"]
    ours: float
    ours_std: float | None
    reference: float
    reference_std: float | None
    difference: float
    within: bool | None
    where: str


def compare(aggregates: Iterable[tuple[str, Aggregate]], reference: Reference, source: Source) -> list[Comparison]:
    """Every cell that both the aggregates (by configuration name) and the chosen source have."""
    return [
        cell
        for name, aggregate in aggregates
        for row in reference.matching(aggregate, source)
        if (summary := aggregate.datasets.get(row.dataset)) is not None
        for cell in (
            _cell(name, row.dataset, "accuracy", _percent(summary.accuracy_mean), _percent(summary.accuracy_std),
                  row.accuracy, row.accuracy_std, row.where, reference.tolerance_points),
            _cell(name, row.dataset, "forward_passes", summary.forward_passes_mean, summary.forward_passes_std,
                  row.forward_passes, row.forward_passes_std, row.where, None),
        )
        if cell is not None
    ]  # fmt: skip


def _cell(
    config: str, dataset: str, measure: Literal["accuracy", "forward_passes"], ours: float | None, ours_std: float | None,
    published: float | None, published_std: float | None, where: str, tolerance: float | None,
) -> Comparison | None:  # fmt: skip
    if ours is None or published is None:
        return None
    difference = ours - published
    # 54.5 against 56.5 is within 2 points, whatever binary fractions make of it.
    within = None if tolerance is None else abs(difference) <= tolerance + 1e-9
    return Comparison(config, dataset, measure, ours, ours_std, published, published_std, difference, within, where)


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
