"""Compare our numbers with the reference numbers, cell by cell.

cells = compare(aggregates, load_reference(), "paper")
show([reference_table(cells, "paper", 2.0)], console)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from kava.report.aggregate_file import Aggregate
from kava.report.reference import Reference, Source
from kava.report.table import PARTIAL, Cell, Table, number, percent, signed


@dataclass(frozen=True)
class Comparison:
    """One measured number and the published one; accuracy in percent.

    `within` is None for measures without a tolerance in the guide, and for a partial evaluation (`partial` says why it is partial).
    """

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
    partial: str


def compare(aggregates: Iterable[tuple[str, Aggregate]], reference: Reference, source: Source) -> list[Comparison]:
    """Return a comparison for every number that both the aggregates (configuration name, aggregate) and the chosen source have."""
    return [
        cell
        for name, aggregate in aggregates
        for row in reference.matching(aggregate, source)
        if (summary := aggregate.datasets.get(row.dataset)) is not None
        for why in [aggregate.partial(row.dataset)]
        for cell in (
            _cell(name, row.dataset, "accuracy", percent(summary.accuracy_mean), percent(summary.accuracy_std),
                  row.accuracy, row.accuracy_std, row.where, None if why else reference.tolerance_points, why),
            _cell(name, row.dataset, "forward_passes", summary.forward_passes_mean, summary.forward_passes_std,
                  row.forward_passes, row.forward_passes_std, row.where, None, why),
        )
        if cell is not None
    ]  # fmt: skip


def reference_table(cells: Sequence[Comparison], source: str, tolerance: float) -> Table:
    """Return a table of our number, the reference, their difference, and whether it lies within the tolerance."""
    rows = [
        [
            Cell(cell.config),
            Cell(cell.dataset),
            Cell("accuracy %" if cell.measure == "accuracy" else "passes"),
            Cell(number(cell.ours, cell.ours_std) + (PARTIAL if cell.partial else ""), cell.ours),
            Cell(number(cell.reference, cell.reference_std), cell.reference),
            signed(cell.difference),
            Cell({True: "yes", False: "NO", None: "-"}[cell.within]),
        ]
        for cell in cells
    ]
    reasons = dict.fromkeys(cell.partial for cell in cells if cell.partial)
    notes = [f"{PARTIAL} not a full evaluation: {'; '.join(reasons)}"] if reasons else []
    notes += [f"source: {where}" for where in dict.fromkeys(cell.where for cell in cells)]
    columns = ["config", "data set", "measure", "ours", source, "diff", f"within {tolerance:g}"]
    return Table("reference", f"ours against the {source}", "", columns, rows, notes=notes)


def _cell(
    config: str, dataset: str, measure: Literal["accuracy", "forward_passes"], ours: float | None, ours_std: float | None,
    published: float | None, published_std: float | None, where: str, tolerance: float | None, partial: str,
) -> Comparison | None:  # fmt: skip
    if ours is None or published is None:
        return None
    difference = ours - published
    # The margin absorbs floating-point rounding error: 54.5 against 56.5 is within 2 points.
    within = None if tolerance is None else abs(difference) <= tolerance + 1e-9
    return Comparison(config, dataset, measure, ours, ours_std, published, published_std, difference, within, where, partial)
