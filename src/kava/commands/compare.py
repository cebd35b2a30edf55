"""`kava compare`."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass
class Compare:
    """Results beside the reference numbers: ours, theirs, the difference, and whether it is within the guide's 2 points."""

    input_dir: Annotated[str, tyro.conf.Positional] = "outputs"
    """Directory with the runs; every aggregated_results.yaml below it is read."""
    reference: Literal["paper", "guide"] = "paper"
    """Which numbers to compare with; the two differ in places."""

    def run(self) -> None:
        from rich.console import Console

        from kava.experiment.aggregate_file import find_aggregates
        from kava.report.compare import compare
        from kava.report.reference import load_reference
        from kava.report.summary import comparison_table

        reference = load_reference()
        found = find_aggregates(self.input_dir)
        cells = compare([(name, aggregate) for _, name, aggregate in found], reference, self.reference)
        console = Console(highlight=False)
        if cells:
            console.print(comparison_table(cells, self.reference, reference.tolerance_points))
            for where in dict.fromkeys(cell.where for cell in cells):
                console.print(f"source: {where}", markup=False, soft_wrap=True)
        compared = {cell.config for cell in cells}
        for name in dict.fromkeys(name for _, name, _ in found if name not in compared):
            console.print(f"{name}: the {self.reference} has no number for it", markup=False, soft_wrap=True)
