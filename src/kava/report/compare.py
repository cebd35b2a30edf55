"""Compare our numbers with the reference numbers, cell by cell.

cells = compare(aggregates, load_reference(), "paper")
show([reference_table(cells, "paper", 2.0)], console)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from kava.report.aggregate_file import Aggregate
from kava.report.reference import Reference, Source
from kava.report.table import PARTIAL, Cell, Table, measured, percent, signed


@dataclass(frozen=True)
class Comparison:
    """One measured number and the published one; accuracy in percent.

    `tolerance` is None for measures without one in the guide, and for a partial evaluation (`partial` says why it is partial).
    """

    config: str
    dataset: str
    measure: Literal["accuracy", "forward_passes"]
    ours: float
    ours_std: float | None
    reference: float
    reference_std: float | None
    where: str
    partial: str
    tolerance: float | None

    @property
    def difference(self) -> float:
        return self.ours - self.reference

    @property
    def within(self) -> bool | None:
        """Whether the difference is within the tolerance; None if there is no tolerance."""
        # The margin absorbs floating-point rounding error: 54.5 against 56.5 is within 2 points.
        return None if self.tolerance is None else abs(self.difference) <= self.tolerance + 1e-9


def compare(aggregates: Iterable[tuple[str, Aggregate]], reference: Reference, source: Source) -> list[Comparison]:
    """Return a comparison for every number that both the aggregates (configuration name, aggregate) and the chosen source have."""
    found = []
    for name, aggregate in aggregates:
        for row in reference.matching(aggregate, source):
            summary = aggregate.datasets.get(row.dataset)
            if summary is None:
                continue
            partial = aggregate.partial(row.dataset)
            if row.accuracy is not None:
                found.append(Comparison(
                    name, row.dataset, "accuracy", 100 * summary.accuracy_mean, percent(summary.accuracy_std),
                    row.accuracy, row.accuracy_std, row.where, partial, None if partial else reference.tolerance_points,
                ))  # fmt: skip
            if row.forward_passes is not None:
                found.append(Comparison(
                    name, row.dataset, "forward_passes", summary.forward_passes_mean, summary.forward_passes_std,
                    row.forward_passes, row.forward_passes_std, row.where, partial, None,
                ))  # fmt: skip
    return found


def reference_table(cells: Sequence[Comparison], source: str, tolerance: float) -> Table:
    """Return a table of our number, the reference, their difference, and whether it lies within the tolerance."""
    rows = [
        [
            Cell(cell.config),
            Cell(cell.dataset),
            Cell("accuracy %" if cell.measure == "accuracy" else "passes"),
            measured(cell.ours, cell.ours_std, PARTIAL if cell.partial else ""),
            measured(cell.reference, cell.reference_std),
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
