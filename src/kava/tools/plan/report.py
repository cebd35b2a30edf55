"""Format plans as a table, as Markdown for the documents, and as sentences."""

import math
from collections.abc import Sequence
from typing import Any

from kava.config import Config
from kava.report.table import Cell, Table
from kava.tools.plan.planner import Plan, Way, refusal
from kava.tools.plan.shapes import DataShape
from kava.train.footprint import RESERVED_FRACTION
from kava.train.step_trace import Lengths

_SHORT = {"model.dtype": "bf16 weights", "training.gradient_checkpointing": "recompute"}


def plan_table(plan: Plan) -> Table:
    """Return a table of every option on one card; the proposed one is marked with an asterisk."""
    cards = f"{plan.gpus} x {plan.gpu_memory:g} GB" if plan.gpus > 1 else f"{plan.gpu_memory:g} GB"
    title = f"{plan.config} on {cards}{', split (FSDP)' if plan.fsdp else ''}; effective batch {plan.effective_batch}; hours {plan.speed}"
    columns = ["settings", "at once", "GiB per GPU", "weights", "trained", "kept", "peak", "hours"]
    rows = []
    for way in plan.ways:
        gib = way.gib
        trained = gib["trained"] + gib["gradients"] + gib["optimizer"]
        sizes = (way.total_gib, gib["weights"] + gib["gathered"], trained, gib["activations"], gib["working"])
        settings = ", ".join(_SHORT[key] for key in way.changes) or "as configured"
        numbers = [Cell(f"{size:.1f}", size) for size in sizes] + [Cell(_hours(way), way.hours) if way.batch_size else Cell("-")]
        rows.append([Cell(f"{settings}{' *' if way.proposed else ''}"), Cell(_batch(way)), *numbers])
    return Table(plan.config, title, "", columns, rows)


def markdown(plans: Sequence[Plan]) -> str:
    """Return the proposals for several configurations as a Markdown table: a row per configuration, a column per card."""
    cards = sorted({plan.gpu_memory for plan in plans})
    lines = ["| configuration | " + " | ".join(f"{card:g} GB" for card in cards) + " |", "|---" + "|---" * len(cards) + "|"]
    for name in dict.fromkeys(plan.config for plan in plans):
        found = {plan.gpu_memory: _cell(plan) for plan in plans if plan.config == name}
        lines.append(f"| {name} | " + " | ".join(found.get(card, "") for card in cards) + " |")
    return "\n".join(lines) + "\n"


def _cell(plan: Plan) -> str:
    if plan.chosen is None:
        return "does not fit"
    way = plan.chosen
    return "; ".join([f"{way.total_gib:.1f} GiB, {_hours(way)} h", _batch(way), *(_SHORT[key] for key in way.changes)])


def _batch(way: Way) -> str:
    return f"{way.batch_size} x {way.gradient_accumulation_steps}" if way.batch_size else "does not fit"


def _hours(way: Way) -> str:
    return f"{way.hours:.0f}" if way.hours >= 10 else f"{way.hours:.2g}"


def advice(plan: Plan, config: Config) -> str:
    """Return the command-line options to use, or why nothing fits and how to fix it.

    A run splits its batches into micro-batches by itself, so only settings that differ from the configuration are listed.
    """
    way = plan.chosen
    if way is None:
        return _why_nothing_fits(plan, config)
    share = plan.effective_batch // plan.gpus
    size = {} if plan.gpus == 1 else {"training.batch_size": share, "training.gradient_accumulation_steps": 1}
    changes = size | way.changes | ({"system.fsdp": True} if plan.fsdp else {})
    at_once = f"{way.batch_size} of {share if size else config.training.batch_size} rows of the longest at once"
    return f"{f'proposed: {_options(changes)}' if changes else 'runs as configured'} ({at_once})"


def _why_nothing_fits(plan: Plan, config: Config) -> str:
    least = min(plan.ways, key=lambda way: way.total_gib)
    enough = math.ceil(least.total_gib / (1 - RESERVED_FRACTION))
    can_split = not plan.fsdp and plan.effective_batch % (2 * plan.gpus) == 0 and refusal(config, {}, sharded=True) is None
    split = f", or split it over several: --gpus {2 * plan.gpus} --fsdp" if can_split else ""
    return (
        f"{plan.config} does not fit {plan.gpu_memory:g} GB: it takes at least {least.total_gib:.1f} GiB per GPU, with one row at a time"
        f"{' and ' + _options(least.changes) if least.changes else ''}; take a card of {enough} GB or more{split}, "
        "or shorter rows (--dataset.max_length)"
    )


def _options(changes: dict[str, Any]) -> str:
    """Format changes as command-line options."""
    return " ".join(f"--{key} {str(value).lower() if isinstance(value, bool) else value}" for key, value in changes.items())


def assumptions(plan: Plan, data: DataShape) -> str:
    """Return the assumptions behind the figures as a sentence."""
    memory = f"memory for the batch with the longest rows ({_parts(data.longest)}), {100 * RESERVED_FRACTION:.0f} % of the card held back"
    speed = f"{plan.tflops:.4g} TFLOP/s ({'assumed' if plan.speed == 'computed' else plan.speed}), validation left out"
    return (
        f"Computed: {memory}; hours for {data.rows:,} rows of {_parts(data.mean)} at {speed}. Rows: {data.source}. "
        "kept: activations, caches and logits for the backward pass; peak: additional memory at the peak."
    )


def _parts(lengths: Lengths) -> str:
    return f"{lengths.question} + {lengths.cot} + {lengths.answer} tokens of question, trace and answer"
