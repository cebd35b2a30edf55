"""`kava compare`."""

from dataclasses import dataclass
from typing import Literal

from kava.commands.options import IncludePartial, Positional, report_left_out


@dataclass
class Compare:
    """Compare results with the reference numbers: ours, the reference, the difference, and whether it is within the guide's 2 points."""

    input_dir: Positional[str] = "outputs"
    """Directory with the runs; every aggregated_results.yaml below it is read."""
    reference: Literal["paper", "guide"] = "paper"
    """Reference numbers to compare with; the two sources differ in some places."""
    include_partial: IncludePartial = False

    def run(self) -> None:
        from rich.console import Console

        from kava.report.aggregate_file import distinct, find_aggregates
        from kava.report.compare import compare, reference_table
        from kava.report.reference import load_reference
        from kava.report.table import show

        reference = load_reference()
        found, problems = find_aggregates(self.input_dir, self.include_partial)
        report_left_out(problems)
        files, names, aggregates = zip(*found, strict=True)
        labels = distinct(names, files, self.input_dir)
        cells = compare(zip(labels, aggregates, strict=True), reference, self.reference)
        console = Console(highlight=False)
        if cells:
            show([reference_table(cells, self.reference, reference.tolerance_points)], console)
        compared = {cell.config for cell in cells}
        for name in (label for label in labels if label not in compared):
            console.print(f"{name}: the {self.reference} has no number for it", markup=False, soft_wrap=True)
