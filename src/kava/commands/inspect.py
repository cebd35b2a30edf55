"""`kava inspect`."""

from dataclasses import dataclass

from kava.commands.options import Positional


@dataclass
class Inspect:
    """Show where the numbers in a file come from: settings, data, code, machine and command line."""

    file: Positional[str]
    """results_<dataset>.yaml, aggregated_results.{yaml,json}, explanation.json, a benchmark file, or the directory of a checkpoint
    or of a run."""
    settings: bool = False
    """For an aggregate: also show all settings of the runs."""

    def run(self) -> None:
        from pathlib import Path

        from rich.console import Console

        from kava.report.table import show
        from kava.tools.origins import origin_tables

        show(origin_tables(Path(self.file), self.settings), Console(highlight=False))
