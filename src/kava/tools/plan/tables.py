"""Plans as a table for people, as Markdown for the documents and as a record for machines."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from kava.results import Record
from kava.tools.plan.choose import Card, Planner, Way, proposed
from kava.tools.plan.shapes import DataShape
from kava.train.footprint import GIB, HELD_BACK
from kava.train.step_trace import Lengths

if TYPE_CHECKING:
    from rich.table import Table

MIB = 2**20
PARTS = ("weights", "trained", "gradients", "optimizer", "activations", "working", "gathered")


class PlannedWay(Record):
    """One set of changes on one card; sizes in GiB per GPU. `batch_size` 0: not even one row fits."""

    changes: dict[str, Any]
    batch_size: int
    gradient_accumulation_steps: int
    gib: dict[str, float]
    total_gib: float
    hours: float
    proposed: bool


class Planned(Record):
    """One configuration on one card."""

    config: str
    model: str
    gpu_memory: float
    gpus: int
    fsdp: bool
    effective_batch: int
    tflops: float
    speed: str
    rows: int
    ways: list[PlannedWay]


class PlanFile(Record):
    """What `kava plan` writes. Memory is computed; hours are too where `speed` does not say that it was measured."""

    format: Literal["kava.plan/2"] = "kava.plan/2"
    held_back: float = HELD_BACK
    plans: list[Planned]


class Checked(Record):
    """One computed figure beside the measured one, in bytes: the peak of training above the weights, in a fresh process on a CPU."""

    shape: str
    batch_size: int
    recompute: bool
    measured: int
    computed: float


class CheckFile(Record):
    """What `kava plan --check` writes."""

    format: Literal["kava.plan-check/1"] = "kava.plan-check/1"
    lengths: list[int]
    rows: list[Checked]
    provenance: dict[str, Any]


def planned(name: str, planner: Planner, card: Card, ways: Sequence[Way]) -> Planned:
    """The record of a plan."""
    speed = card.speed(planner.measured)
    chosen = proposed(ways)
    entries = [
        PlannedWay(
            changes=way.changes,
            batch_size=way.batch_size,
            gradient_accumulation_steps=way.accumulation,
            gib={part: round(getattr(way.footprint, part) / GIB, 2) for part in PARTS},
            total_gib=round(way.footprint.total / GIB, 1),
            hours=float(f"{way.hours:.2g}"),
            proposed=way is chosen,
        )
        for way in ways
    ]
    return Planned(
        config=name, model=planner.config.model.name, gpu_memory=card.gigabytes, gpus=card.gpus, fsdp=card.sharded,
        effective_batch=planner.effective_batch, tflops=round(speed.tflops, 1), speed=speed.source, rows=planner.data.rows, ways=entries,
    )  # fmt: skip


def plan_table(plan: Planned) -> "Table":
    """Every way on one card; the proposed one is marked."""
    cards = f"{plan.gpus} x {plan.gpu_memory:g} GB" if plan.gpus > 1 else f"{plan.gpu_memory:g} GB"
    title = f"{plan.config} on {cards}{', split (FSDP)' if plan.fsdp else ''}; effective batch {plan.effective_batch}; hours {plan.speed}"
    table = _table(title, "settings", "at once", "GiB per GPU", "weights", "trained", "kept", "peak", "hours")
    for way in plan.ways:
        parts = way.gib
        trained = parts["trained"] + parts["gradients"] + parts["optimizer"]
        sizes = (parts["weights"] + parts["gathered"], trained, parts["activations"], parts["working"])
        figures = (_batch(way), f"{way.total_gib:.1f}", *(f"{size:.1f}" for size in sizes), _hours(way) if way.batch_size else "-")
        mark = "* " if way.proposed else "  "
        table.add_row(mark + (", ".join(map(_short, way.changes)) or "as configured"), *figures)
    return table


def check_table(rows: Sequence[Checked]) -> "Table":
    """The computed peak beside the measured one."""
    table = _table(
        "peak above the weights, one CPU process, fp32, LoRA r = 128",
        "shape",
        "batch",
        "recompute",
        "measured MiB",
        "computed MiB",
        "computed / measured",
    )
    for row in rows:
        figures = (f"{row.measured / MIB:.0f}", f"{row.computed / MIB:.0f}", f"{row.computed / row.measured:.2f}")
        table.add_row(row.shape, str(row.batch_size), "yes" if row.recompute else "no", *figures)
    return table


def _table(title: str, *columns: str) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table


def _short(key: str) -> str:
    return {"model.dtype": "bf16 weights", "training.gradient_checkpointing": "recompute"}[key]


def assumptions(plan: Planned, data: DataShape) -> str:
    """What the figures rest on."""
    memory = f"memory for the batch with the longest rows ({_parts(data.longest)}), {100 * HELD_BACK:.0f} % of the card held back"
    speed = f"{plan.tflops:g} TFLOP/s ({'assumed' if plan.speed == 'computed' else plan.speed}), validation left out"
    return (
        f"Computed: {memory}; hours for {data.rows:,} rows of {_parts(data.mean)} at {speed}. Rows: {data.source}. "
        "kept: activations, caches and logits for the backward pass; peak: what comes on top."
    )


def _parts(lengths: Lengths) -> str:
    return f"{lengths.question} + {lengths.cot} + {lengths.answer} tokens of question, trace and answer"


def markdown(plans: Sequence[Planned]) -> str:
    """The proposals of several configurations: a row for each configuration, a column for each card."""
    cards = sorted({plan.gpu_memory for plan in plans})
    lines = ["| configuration | " + " | ".join(f"{card:g} GB" for card in cards) + " |", "|---" + "|---" * len(cards) + "|"]
    for name in dict.fromkeys(plan.config for plan in plans):
        found = {plan.gpu_memory: plan for plan in plans if plan.config == name}
        lines.append(f"| {name} | " + " | ".join(_cell(found[card]) if card in found else "" for card in cards) + " |")
    return "\n".join(lines) + "\n"


def _cell(plan: Planned) -> str:
    way = next((way for way in plan.ways if way.proposed), None)
    if way is None:
        return "does not fit"
    return "; ".join([f"{way.total_gib:.1f} GiB, {_hours(way)} h", _batch(way), *map(_short, way.changes)])


def _batch(way: PlannedWay) -> str:
    return f"{way.batch_size} x {way.gradient_accumulation_steps}" if way.batch_size else "does not fit"


def _hours(way: PlannedWay) -> str:
    return f"{way.hours:.0f}" if way.hours >= 1 else f"{way.hours:.2g}"
