"""`kava report`."""

from dataclasses import dataclass

from kava.commands.options import IncludePartial, Positional, report_left_out


@dataclass
class Report:
    """Write one self-contained HTML page of all results below a directory: tables, figures, explanations, provenance."""

    input_dir: Positional[str] = "outputs"
    """Directory with the runs."""
    output: str | None = None
    """HTML file to write (default: report.html in that directory)."""
    title: str | None = None
    """Title of the page (default: the directory's name)."""
    include_partial: IncludePartial = False

    def run(self) -> None:
        from pathlib import Path

        from kava.report.page import render_page
        from kava.report.runs import find_runs
        from kava.results import write_text

        found = find_runs(self.input_dir, self.include_partial)
        report_left_out(found.problems)
        path = Path(self.output or Path(self.input_dir) / "report.html")
        text = render_page(found, self.title or Path(self.input_dir).resolve().name)
        write_text(path, text)
        counts = f"{len(found.groups)} configurations, {len(found.curves)} training runs, {len(found.explanations)} explanations"
        print(f"written: {path} ({len(text.encode()) / 1024:.0f} KiB: {counts})")
