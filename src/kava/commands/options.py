"""What several commands share: options with their help, settings of the configuration, and what they print."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro
from tyro.conf import Positional

__all__ = ["Checkpoint", "IncludePartial", "Overridable", "Positional", "output_directory", "report_left_out"]

Checkpoint = Annotated[str, tyro.conf.arg(help="A checkpoint, or the directory of a run that has a best_checkpoint.")]
IncludePartial = Annotated[
    bool,
    tyro.conf.arg(
        help="Include quick tests and evaluations limited by max_samples, marked in every format (default: leave them out and list them)."
    ),
]


class Overridable:
    """A command that also takes settings of the configuration, `--section.key value`; `kava.cli` sets them."""

    overrides: ClassVar[dict[str, Any]] = {}


def output_directory(given: str | None, name: str, quick_test: bool, suffix: str = "") -> Path:
    """Return the directory that was given, or one in outputs/ by the name of what runs; a quick test has its own."""
    return Path(given or f"outputs/{name}{'_quick_test' if quick_test else ''}{suffix}")


def report_left_out(problems: Iterable[str]) -> None:
    """Name on standard error what a command leaves out, one line each."""
    for problem in problems:
        print(f"kava: left out: {problem}", file=sys.stderr)
