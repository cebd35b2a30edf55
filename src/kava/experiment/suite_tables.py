"""The tables of a suite, for the terminal and as Markdown."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from rich.table import Table

from kava.experiment.summary import Cell, Comparison, Key
from kava.statistics import SeedSummary

T = TypeVar("T", bound=Hashable)


def accuracy_text(cell: Cell) -> str:
    """`56.5 (0.4) [55.5, 57.5]`: mean, sample deviation over seeds where there are several, 95 % interval; in percent."""
    deviation = f" ({100 * cell.accuracy.std:.1f})" if cell.accuracy.std is not None else ""
    low, high = cell.bounds
    return f"{100 * cell.accuracy.mean:.1f}{deviation} [{100 * low:.1f}, {100 * high:.1f}]"


def suite_tables(title: str, cells: Mapping[Key, Cell]) -> list[tuple[str, list[str], list[list[str]]]]:
    """A table per variant, as (title, header, rows): accuracy per data set, then efficiency on the first data set."""
    tables = []
    for variant in _ordered(key[0] for key in cells):
        datasets = _ordered(key[2] for key in cells if key[0] == variant)
        header = ["method", *datasets, "forward passes", "tokens", "ms/question", "cache KiB"]
        rows = []
        for run in _ordered(key[1] for key in cells if key[0] == variant):
            own = {d: cells[variant, run, d] for d in datasets if (variant, run, d) in cells}
            first = next(iter(own.values()))
            rows.append(
                [
                    run,
                    *(accuracy_text(own[d]) if d in own else "-" for d in datasets),
                    f"{first.forward_passes.mean:.1f}",
                    f"{first.generated_tokens.mean:.1f}",
                    f"{1000 * first.seconds_per_question.mean:.2f}",
                    f"{first.cache_bytes.mean / 1024:.1f}" if first.cache_bytes else "-",
                ]
            )
        tables.append((_titled(title, variant), header, rows))
    return tables


def steps_tables(title: str, cells: Mapping[Key, Cell]) -> list[tuple[str, list[str], list[list[str]]]]:
    """A table per variant, as (title, header, rows): accuracy by number of steps, percent, mean (sample deviation over seeds)."""
    tables = []
    for variant in _ordered(key[0] for key in cells):
        own = {key[1:]: cell for key, cell in cells.items() if key[0] == variant}
        columns = _ordered((dataset, steps) for (_, dataset), cell in own.items() for steps in cell.by_steps)
        rows = []
        for run in _ordered(run for run, _ in own):
            found = [own[run, dataset].by_steps.get(steps) if (run, dataset) in own else None for dataset, steps in columns]
            rows.append([run, *("-" if summary is None else _figure(summary, 100.0, 1) for summary in found)])
        if columns:
            tables.append(
                (f"{_titled(title, variant)}, by number of steps", ["method", *(f"{dataset}, {steps}" for dataset, steps in columns)], rows)
            )
    return tables


def efficiency_tables(title: str, cells: Mapping[Key, Cell]) -> list[tuple[str, list[str], list[list[str]]]]:
    """A table per variant, as (title, header, rows): what a question costs on the first data set, mean (sample deviation over seeds)."""
    header = ["method", "accuracy", "forward passes", "tokens", "ms/question", "cache KiB"]
    tables = []
    for variant in _ordered(key[0] for key in cells):
        first = next(key[2] for key in cells if key[0] == variant)
        rows = [[run, *_efficiency(cell)] for (v, run, dataset), cell in cells.items() if (v, dataset) == (variant, first)]
        tables.append((f"{_titled(title, variant)} ({first})", header, rows))
    return tables


def _titled(title: str, variant: str) -> str:
    return title if variant == "all" else f"{title}: {variant}"


def _efficiency(cell: Cell) -> list[str]:
    measures = [(cell.forward_passes, 1.0, 1), (cell.generated_tokens, 1.0, 1), (cell.seconds_per_question, 1000.0, 2)]
    figures = [_figure(summary, scale, digits) for summary, scale, digits in measures]
    return [accuracy_text(cell), *figures, _figure(cell.cache_bytes, 1 / 1024, 1) if cell.cache_bytes else "-"]


def _figure(summary: SeedSummary, scale: float, digits: int) -> str:
    deviation = f" ({scale * summary.std:.{digits}f})" if summary.std is not None else ""
    return f"{scale * summary.mean:.{digits}f}{deviation}"


def comparison_table(comparisons: Sequence[Comparison]) -> tuple[str, list[str], list[list[str]]]:
    """Paired comparisons as (title, header, rows)."""
    header = ["variant", "data set", "compared", "difference [95 %]", "bootstrap p", "McNemar p per seed"]
    rows = []
    for item in comparisons:
        low, high = item.interval
        rows.append(
            [
                item.variant,
                item.dataset,
                f"{item.first} - {item.second}",
                f"{100 * item.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
                f"{item.p_value:.2g}",
                " ".join(f"{p:.2g}" for p in item.mcnemar_p.values()),
            ]
        )
    return "paired comparisons on the same questions (percentage points)", header, rows


def as_rich(title: str, header: list[str], rows: list[list[str]]) -> Table:
    """For the terminal."""
    table = Table(title=title)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def as_markdown(title: str, header: list[str], rows: list[list[str]]) -> str:
    """For documents."""
    lines = [f"### {title}", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _ordered(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))
