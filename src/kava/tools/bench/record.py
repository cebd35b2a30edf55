"""The benchmark's file, its tables, and the comparison with numbers recorded before."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from kava.errors import UserError
from kava.results import Record, parse_record, write_text
from kava.runtime.provenance import collect
from kava.runtime.text import read_text
from kava.tools.bench.workload import HALF

if TYPE_CHECKING:
    from rich.table import Table

FORMAT: Literal["kava.bench/1"] = "kava.bench/1"
TOLERANCE = 0.15
# Relative, of each loss term: rounding may exchange two trace entries of equal score.
LOSS_TOLERANCE = 1e-3
ROUNDED_TOLERANCE = 5e-2
_CURE = "record it anew: python -m kava bench --output FILE"
_MIB = 2**20


class BenchFile(Record):
    """What one benchmark measured. Every ratio is ours against something slower or larger: the higher the better."""

    format: Literal["kava.bench/1"] = FORMAT
    settings: dict[str, Any]
    ratios: dict[str, float] = Field(min_length=1)
    measured: dict[str, Any]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Guarded:
    """One ratio against the recorded one; `measured` is None where it was not measured."""

    name: str
    recorded: float
    measured: float | None

    @property
    def passed(self) -> bool:
        return self.measured is not None and self.measured >= (1 - TOLERANCE) * self.recorded


def write_bench(path: str | Path, settings: dict[str, Any], ratios: dict[str, float], measured: dict[str, Any]) -> None:
    """Write a benchmark file with its provenance.

    Raises:
        UserError: the place cannot be written to.
    """
    content = BenchFile(settings=settings, ratios=ratios, measured=measured, provenance=collect())
    write_text(path, json.dumps(content.model_dump(mode="json"), indent=2) + "\n")


def read_bench(path: str | Path) -> BenchFile:
    """Read and check a benchmark file.

    Raises:
        UserError: missing, broken or of another kind.
    """
    try:
        content = json.loads(read_text(path, "benchmark file", _CURE))
    except (ValueError, RecursionError) as error:
        raise UserError(f"benchmark file {path} cannot be read ({error}); {_CURE}") from None
    return parse_record(BenchFile, content, f"benchmark file {path}", _CURE)


def unequal_work(measured: dict[str, Any], dtype: str) -> list[str]:
    """Where the variants did not compute the same, so that their seconds cannot be compared."""
    problems = []
    for name, value in measured.get("step", {}).get("loss_difference", {}).items():
        allowed = LOSS_TOLERANCE if dtype == "float32" and name != HALF else ROUNDED_TOLERANCE
        if not value <= allowed:
            problems.append(f"a loss of {name} is off by {value:.1e}, allowed {allowed:.0e}")
    if not measured.get("decoding", {"same_tokens": True})["same_tokens"]:
        problems.append(f"decoding differs from token {measured['decoding']['first_difference'] + 1} on")
    return problems


def guard(recorded: dict[str, float], measured: dict[str, float]) -> list[Guarded]:
    """Every recorded ratio with the one measured now."""
    return [Guarded(name, value, measured.get(name)) for name, value in recorded.items()]


def guard_table(rows: list[Guarded]) -> "Table":
    """Recorded and measured ratios side by side."""
    table = new_table("against the recorded ratios", "recorded", "now", "change", "")
    for row in rows:
        if row.measured is None:
            table.add_row(row.name, f"{row.recorded:.2f}", "-", "-", "not measured")
            continue
        change = f"{100 * (row.measured / row.recorded - 1):+.0f} %"
        verdict = "ok" if row.passed else f"worse by more than {100 * TOLERANCE:.0f} %"
        table.add_row(row.name, f"{row.recorded:.2f}", f"{row.measured:.2f}", change, verdict)
    return table


def step_table(step: dict[str, Any]) -> "Table":
    """The training step, ours against the reference forms."""
    table = new_table(
        "training step (forward and backward)", "seconds", "times ours", "peak MiB", "times ours", "step alone MiB", "loss off by"
    )
    for name, entry in step["variants"].items():
        ours = name == "ours"
        table.add_row(
            name,
            f"{entry['median_seconds']:.3f}",
            "1" if ours else f"{step['speedup'][name]:.2f}",
            f"{entry['peak_bytes'] / _MIB:.0f}",
            "1" if ours else f"{step['memory_ratio'][name]:.2f}",
            f"{(entry['peak_bytes'] - entry['rest_bytes']) / _MIB:.0f}",
            "" if ours else f"{step['loss_difference'][name]:.1e}",
        )
    return table


def utilisation_line(step: dict[str, Any]) -> str:
    """Model FLOP utilisation in one sentence."""
    used = step["utilisation"]
    rate = used["matmul_flops_per_second"] / 1e9
    needed = f"ours needs {used['flops'] / 1e9:.1f} GFLOP a step; this machine multiplies such matrices at {rate:.0f} GFLOP/s"
    return f"{needed}: utilisation {100 * used['share']:.0f} %"


def half_line(step: dict[str, Any]) -> str:
    """What bfloat16 gives, in one sentence; nothing where it was not measured."""
    gains = ", ".join(f"{name} {value:.2f}" for name, value in step["bf16_speedup"].items())
    return f"ours in bfloat16 is so many times as fast as the float32 steps: {gains}" if gains else ""


def calls_table(calls: dict[str, dict[str, Any]], shape: str) -> "Table":
    """Operations of a training step, by pass; the most frequent that are no views by name."""
    table = new_table(f"operations of a training step, {shape}", "all", "without views", "most of them")
    for name, entry in calls.items():
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in list(entry["kinds"].items())[:6])
        table.add_row(name, f"{entry['calls']:,}", f"{entry['without_views']:,}", kinds)
    return table


def decoding_table(decoding: dict[str, Any], title: str) -> "Table":
    """Cached against recomputed decoding; passes, tokens and cache are those of one question."""
    table = new_table(title, "seconds", "ms per token", "forward passes", "tokens written", "cache KiB", "peak MiB", "decoding alone MiB")
    for name, entry in decoding["variants"].items():
        table.add_row(
            name,
            f"{entry['median_seconds']:.3f}",
            f"{1000 * entry['median_seconds'] / decoding['new_tokens']:.1f}",
            str(entry["forward_passes"]),
            str(entry["generated_tokens"]),
            f"{entry['cache_bytes'] / 1024:.0f}",
            f"{entry['peak_bytes'] / _MIB:.0f}",
            f"{(entry['peak_bytes'] - entry['rest_bytes']) / _MIB:.0f}",
        )
    return table


def same_tokens_line(decoding: dict[str, Any]) -> str:
    """The ratio, and whether both ways wrote the same."""
    written = f"{decoding['batch']} x {decoding['new_tokens']} tokens after at most {decoding['prompt_tokens']}"
    same = "all the same" if decoding["same_tokens"] else f"DIFFERENT from token {decoding['first_difference'] + 1} on"
    return f"incremental decoding is {decoding['speedup']:.2f} times faster; {written}, {same}"


def thinking_table(comparisons: list[dict[str, Any]]) -> "Table":
    """Latents against written chain of thought, per question."""
    table = new_table("one question", "batch", "seconds", "latent faster by", "forward passes", "tokens written", "cache KiB")
    for comparison in comparisons:
        for name, entry in comparison["variants"].items():
            table.add_row(
                name,
                str(comparison["batch"]),
                f"{entry['median_seconds_per_question']:.3f}",
                f"{comparison['speedup']:.2f}" if name == "latent" else "",
                str(entry["forward_passes"]),
                str(entry["generated_tokens"]),
                f"{entry['cache_bytes'] / 1024:.0f}",
            )
    return table


def new_table(title: str, *columns: str) -> "Table":
    """A table of numbers with a first column for names."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table
