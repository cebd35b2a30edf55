"""Results as tables on a terminal, readable at 80 columns and in a pipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kava.experiment.aggregate_file import Aggregate
from kava.report.compare import Comparison
from kava.report.rows import number

if TYPE_CHECKING:
    from rich.table import Table


def aggregate_table(name: str, aggregate: Aggregate) -> Table:
    """Accuracy in percent, forward passes, tokens and seconds per question over the seeds of one configuration."""
    from rich.table import Table
    from rich.text import Text

    title = f"{name}: mean (sample standard deviation) over {aggregate.num_seeds} seed{'s' if aggregate.num_seeds > 1 else ''}"
    table = Table("data set", "accuracy %", "95 %", "passes", "tokens", "seconds", title=Text(title))
    for dataset, data in aggregate.datasets.items():
        interval = "-" if data.accuracy_ci95 is None else "-".join(f"{100 * bound:.1f}" for bound in data.accuracy_ci95)
        table.add_row(
            Text(dataset),
            number(100 * data.accuracy_mean, None if data.accuracy_std is None else 100 * data.accuracy_std),
            interval,
            number(data.forward_passes_mean, data.forward_passes_std),
            number(data.generated_tokens_mean, data.generated_tokens_std),
            number(data.seconds_per_question_mean, data.seconds_per_question_std, digits=3),
        )
    return table


def comparison_table(cells: Sequence[Comparison], source: str, tolerance: float) -> Table:
    """Ours, the reference and the difference per cell, and whether it lies within the tolerance."""
    from rich.text import Text

    table = _plain_table(f"ours against the {source}")
    for heading in ("config", "data set", "measure", "ours", source, "diff", f"within {tolerance:g}"):
        table.add_column(heading, overflow="fold")
    for cell in cells:
        within = {True: "yes", False: "NO", None: "-"}[cell.within]
        measure = "accuracy %" if cell.measure == "accuracy" else "passes"
        ours, theirs = number(cell.ours, cell.ours_std), number(cell.reference, cell.reference_std)
        # Adding zero makes a rounded -0.0 a plain 0.0.
        difference = f"{round(cell.difference, 1) + 0.0:+.1f}"
        table.add_row(Text(cell.config), Text(cell.dataset), measure, ours, theirs, difference, within)
    return table


def settings_table(title: str, settings: Mapping[str, Sequence[Any]], columns: Sequence[str]) -> Table:
    """A row per dotted key, a column per configuration."""
    from rich.text import Text

    table = _plain_table(title)
    for heading in ("setting", *columns):
        table.add_column(Text(heading), overflow="fold")
    for key, values in settings.items():
        table.add_row(Text(key), *(Text(shown(value)) for value in values))
    return table


def shown(value: Any) -> str:
    """A setting's value as YAML would write it in a line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ", ".join(shown(element) for element in value) + "]"
    return str(value)


def _plain_table(title: str) -> Table:
    """Without a frame: narrow, and still readable when it is piped or pasted."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    return Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
