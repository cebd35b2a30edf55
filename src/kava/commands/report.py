"""`kava report`."""

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass
class Report:
    """One self-contained page of everything below a directory: tables, figures, explanations, provenance."""

    input_dir: Annotated[str, tyro.conf.Positional] = "outputs"
    """Directory with the runs."""
    output: str | None = None
    """Page to write (default: report.html in that directory)."""
    title: str | None = None
    """Its title (default: the directory's name)."""
    include_partial: bool = False
    """Quick tests and evaluations cut by max_samples too, marked in every format (default: they are left out, and named)."""

    def run(self) -> None:
        import sys
        from pathlib import Path

        from kava.report.page import render_page
        from kava.report.runs import find_runs
        from kava.results import write_text

        found = find_runs(self.input_dir, self.include_partial)
        for problem in found.problems:
            print(f"kava: left out: {problem}", file=sys.stderr)
        path = Path(self.output or Path(self.input_dir) / "report.html")
        text = render_page(found, self.title or Path(self.input_dir).resolve().name)
        write_text(path, text)
        counts = f"{len(found.groups)} configurations, {len(found.curves)} training runs, {len(found.explanations)} explanations"
        print(f"written: {path} ({len(text.encode()) / 1024:.0f} KiB: {counts})")
