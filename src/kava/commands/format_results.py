"""`kava format-results`, `python format_results.py`."""

from dataclasses import dataclass

from kava.commands.options import IncludePartial, report_left_out


@dataclass
class FormatResults:
    """Write the paper's Tables 1 and 2, with the reference rows next to ours, as LaTeX and as CSV."""

    input_dir: str = "outputs"
    """Directory with the runs; every aggregated_results.yaml below it is read."""
    output_latex: str | None = None
    """LaTeX file to write: tables to \\input, or a whole document with --standalone."""
    output_csv: str | None = None
    """CSV file to write, for a spreadsheet."""
    standalone: bool = False
    """Make the LaTeX file a document that compiles by itself."""
    include_partial: IncludePartial = False

    def run(self) -> None:
        from kava.errors import UserError
        from kava.report.aggregate_file import distinct, find_aggregates
        from kava.report.group import Group
        from kava.report.latex import render_latex
        from kava.report.reference import load_reference
        from kava.report.table import as_csv
        from kava.report.tables import numbers_table
        from kava.results import write_text

        if self.output_latex is None and self.output_csv is None:
            raise UserError("nothing to write: give --output_latex FILE, --output_csv FILE or both")
        found, problems = find_aggregates(self.input_dir, self.include_partial)
        report_left_out(problems)
        aggregates = [aggregate for _, _, aggregate in found]
        names = distinct([aggregate.model_name for aggregate in aggregates], [file for file, _, _ in found], self.input_dir)
        latex = render_latex([Group(*named) for named in zip(names, aggregates, strict=True)], load_reference(), self.standalone)
        table = as_csv(numbers_table((file.as_posix(), name, aggregate) for file, name, aggregate in found))
        for path, text in ((self.output_latex, latex), (self.output_csv, table)):
            if path is not None:
                write_text(path, text)
                print(f"{path}: {len(found)} configuration{'s' if len(found) != 1 else ''}")
