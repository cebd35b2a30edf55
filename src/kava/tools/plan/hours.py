"""Expected hours: FLOPs by formula (`kava.tools.bench.flops`) over a card's rate, and no step faster than the host can ask for it.

A card's rate is measured where docs/results/gpu.json has it; elsewhere a share of its published peak is assumed, which is then said.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError

from kava.config import Config
from kava.errors import UserError, nearest
from kava.methods import METHODS
from kava.results import Record
from kava.runtime.shipped import shipped
from kava.tools.bench.flops import step_flops
from kava.tools.bench.workload import Workload
from kava.tools.plan.shapes import DataShape, sizes_of

UTILISATION = 0.3
# Seconds in which the host asks for a step's operations, per layer: 376 ms for 16 layers on an H100 machine (2026-11-26, LLaMA-3.2-1B).
HOST_SECONDS = 0.0235


@dataclass(frozen=True)
class CardKind:
    """A card as its data sheet has it: GB and dense bf16 peak in TFLOP/s."""

    gigabytes: int | float
    tflops: int | float


CARDS = {
    "A10": CardKind(24, 125.0),
    "A100-40GB": CardKind(40, 312.0),
    "A100-80GB": CardKind(80, 312.0),
    "H100": CardKind(80, 989.0),
    "H200": CardKind(141, 989.0),
}


class Measured(Record):
    """A training step as it was measured on a card; other fields of its record are not read."""

    model_config = ConfigDict(extra="ignore", strict=False)

    card: str
    batch: int
    examples_per_second: float
    tflops: int | float
    layers: int | None = None


@dataclass(frozen=True)
class Speed:
    """How fast a card trains.

    Attributes:
        tflops: that a step reaches where the card is busy.
        host_seconds: per layer; no step takes less.
        source: "computed", or what was measured.
    """

    tflops: int | float
    host_seconds: float = HOST_SECONDS
    source: str = "computed"


def card_named(name: str) -> CardKind:
    """The card that a user names.

    Raises:
        UserError: it is not in the table.
    """
    found = next((kind for known, kind in CARDS.items() if known.lower() == name.lower()), None)
    if found is None:
        raise UserError(f"--card '{name}' is not known{nearest(name, CARDS)}; give --gpu_memory and --tflops instead")
    return found


def measurements(path: Path | None = None) -> list[Measured]:
    """The training steps that were measured on cards; none where there is no such file."""
    path = path or shipped("docs/results") / "gpu.json"
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        content = [json.loads(line) for line in text.splitlines() if line.strip()]
    rows = content.get("records", []) if isinstance(content, dict) else content
    found = []
    for row in rows:
        try:
            found.append(Measured.model_validate(row))
        except ValidationError:
            # A figure of another kind, such as a decoding pass.
            continue
    return found


def speed_of(card: str | None, peak: float, utilisation: float, measured: list[Measured]) -> Speed:
    """The rate that was measured on a card, or a share of its peak."""
    rows = [row for row in measured if card and card.lower() in row.card.lower()]
    if not rows:
        return Speed(peak * utilisation)
    best = max(rows, key=lambda row: row.tflops)
    floors = [row.batch / row.examples_per_second / row.layers for row in rows if row.layers]
    source = f"measured: {best.tflops:.0f} TFLOP/s, {best.examples_per_second:.0f} examples/s in batches of {best.batch} on {best.card}"
    return Speed(best.tflops, min(floors, default=HOST_SECONDS), source)


def example_flops(shape: Any, config: Config, data: DataShape) -> int:
    """FLOPs of one row of mean length, forward and backward; a curriculum counts at its longest stage."""
    method = METHODS[config.method]
    whole = method.writes_cot or method.curriculum == "remove_tokens" or not config.dataset.drop_last_step
    workload = Workload(
        batch=1,
        question=data.mean.question,
        cot=data.mean.cot if whole else data.mean.cot - data.mean.last_step,
        answer=data.mean.answer,
        latents=config.latent.num_tokens,
        iterations=config.latent.num_iterations,
        lora_r=config.lora.r if config.lora.enabled else 0,
        method=config.method,
    )
    return step_flops(workload, sizes_of(shape), recompute=config.training.gradient_checkpointing)


def training_examples(config: Config, data: DataShape) -> float:
    """Rows that a run sees: epochs, or optimizer steps times the effective batch."""
    training = config.training
    if training.max_steps > 0:
        return float(training.max_steps * training.batch_size * training.gradient_accumulation_steps)
    return float(data.rows * training.epochs)


def hours(flops: int | float, examples: int | float, rows: int, layers: int, gpus: int, speed: Speed) -> float:
    """Hours of wall clock; validation by generation is not in it.

    Args:
        flops: of a row.
        examples: that the run sees.
        rows: that a card computes at once.
        layers: of the model.
        gpus: that share the rows.
        speed: of each.
    """
    seconds = max(rows * flops / (speed.tflops * 1e12), layers * speed.host_seconds)
    return examples / rows * seconds / gpus / 3600
