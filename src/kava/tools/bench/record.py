"""Benchmark results: their file format, their tables, and the comparison with recorded ratios."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from kava.report import table
from kava.results import Record, parse_record, read_mapping, write_text
from kava.runtime.provenance import collect

FORMAT: Literal["kava.bench/1"] = "kava.bench/1"
_CURE = "record it again: python -m kava bench --output FILE"


@dataclass
class Found:
    """Results of one part of the benchmark.

    Attributes:
        tables: rows by title; values that are lists are recorded but not shown.
        ratios: a slower or larger alternative, or a limit, divided by our figure; higher is better.
        problems: reasons why the figures cannot be trusted or exceed their limits.
    """

    tables: dict[str, list[dict[str, Any]]]
    ratios: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class BenchFile(Record):
    """Content of a benchmark file."""

    format: Literal["kava.bench/1"] = FORMAT
    settings: dict[str, Any]
    ratios: dict[str, float]
    measured: dict[str, Any]
    provenance: dict[str, Any]


def write_bench(path: str | Path, settings: dict[str, Any], ratios: dict[str, float], measured: dict[str, Any]) -> None:
    """Write a benchmark file with its provenance.

    Raises:
        UserError: the file cannot be written.
    """
    content = BenchFile(settings=settings, ratios=ratios, measured=measured, provenance=collect())
    write_text(path, json.dumps(content.model_dump(mode="json"), indent=2) + "\n")


def read_bench(path: str | Path) -> BenchFile:
    """Read and check a benchmark file.

    Raises:
        UserError: the file is missing, damaged or of another kind.
    """
    return parse_record(BenchFile, read_mapping(path, "benchmark file", _CURE), f"benchmark file {path}", _CURE)


def guard(recorded: Mapping[str, float], measured: Mapping[str, float], tolerance: float) -> list[dict[str, Any]]:
    """Return a row per recorded ratio with the one measured now and whether it is within the tolerance."""
    rows = []
    for name, before in recorded.items():
        now = measured.get(name)
        if now is None:
            verdict = "not measured"
        else:
            verdict = "ok" if now >= (1 - tolerance) * before else f"worse by more than {100 * tolerance:.0f} %"
        rows.append({"ratio": name, "recorded": before, "now": now, "verdict": verdict})
    return rows


def show(console: Console, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table, a column for each key."""
    columns = [key for key in rows[0] if not isinstance(rows[0][key], list)]
    table.show([table.Table(title, title, "", columns, [[_cell(row[key]) for key in columns] for row in rows])], console)


def _cell(value: Any) -> table.Cell:
    if isinstance(value, float):
        # Three significant digits, and no exponent for large numbers.
        return table.Cell(f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}", value)
    if isinstance(value, int):
        return table.Cell(f"{value:,}", value)
    return table.Cell("-" if value is None else str(value))
