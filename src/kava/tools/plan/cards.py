"""Cards to train on: their memory, and their speed as measured (docs/results/gpu.json) or as a share of the published peak."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import ConfigDict, ValidationError

from kava.errors import UserError, nearest
from kava.results import Record
from kava.runtime.shipped import shipped
from kava.train.footprint import GIB, RESERVED_FRACTION

# GB and dense bf16 peak in TFLOP/s, from the data sheets.
CARDS: dict[str, tuple[float, float]] = {
    "A10": (24.0, 125.0), "A100-40GB": (40.0, 312.0), "A100-80GB": (80.0, 312.0), "H100": (80.0, 989.0), "H200": (141.0, 989.0),
}  # fmt: skip
UTILISATION = 0.3
# Seconds per layer that a step takes however little it computes, because its operations are launched one by one: 376 ms for 16 layers
# (H100, 2026-11-26, LLaMA-3.2-1B, without CUDA graphs).
LAYER_SECONDS = 0.0235
# What train.py reaches of a measured step's FLOP/s, whose rows are equally long: 389 examples/s on rows as different as GSM8k-AUG's, where
# the step of that run gives 475 for rows of mean length (H100, run 2). Padding takes some of it, recording a graph for each shape the rest.
TRAINING_SHARE = 0.82


class Measured(Record):
    """A training step that was measured on a card; other fields of the record are ignored."""

    model_config = ConfigDict(extra="ignore", strict=False)

    card: str
    batch: int
    examples_per_second: float
    tflops: float
    layers: int | None = None
    shape: str | None = None

    @property
    def layer_seconds(self) -> float | None:
        """Seconds per layer."""
        return self.batch / self.examples_per_second / self.layers if self.layers else None


def measurements(path: Path | None = None) -> list[Measured]:
    """Return the training steps that were measured on cards; an empty list if there is no such file."""
    path = path or shipped("docs/results") / "gpu.json"
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        content = [json.loads(line) for line in text.splitlines() if line.strip()]
    found = []
    for row in content.get("records", []) if isinstance(content, dict) else content:
        try:
            found.append(Measured.model_validate(row))
        except ValidationError:
            # A record of another kind, such as a decoding pass.
            continue
    return found


class Speed(NamedTuple):
    """Training speed of a card.

    Attributes:
        tflops: TFLOP/s that a step reaches.
        layer_seconds: minimum seconds of a step per layer.
        source: where both come from.
        share: what a training reaches of the speed of a step.
    """

    tflops: float
    layer_seconds: float = LAYER_SECONDS
    source: str = "computed"
    share: float = 1.0


@dataclass(frozen=True)
class Card:
    """GPUs to train on.

    Attributes:
        gigabytes: memory of each GPU in GB.
        gpus: number of GPUs.
        sharded: the model is sharded over them (FSDP).
        tflops: dense bf16 peak in TFLOP/s; None takes it from `CARDS`.
        utilisation: share of the peak that training is assumed to reach.
        name: name of the card, used to find its measurements.
    """

    gigabytes: int | float
    gpus: int = 1
    sharded: bool = False
    tflops: float | None = None
    utilisation: float = UTILISATION
    name: str | None = None

    @property
    def room(self) -> float:
        """Bytes that training may use on each GPU."""
        return self.gigabytes * GIB * (1 - RESERVED_FRACTION)

    @property
    def peak_tflops(self) -> float:
        """The given peak, or that of the largest card in `CARDS` that is not larger than this one; of equal sizes, the slowest."""
        smaller = [kind for kind in CARDS.values() if kind[0] <= self.gigabytes] or [min(CARDS.values())]
        return self.tflops or min(smaller, key=lambda kind: (-kind[0], kind[1]))[1]

    def speed(self, measured: Sequence[Measured]) -> Speed:
        """Return the speed measured on a card of this name, or else the assumed share of the peak."""
        rows = [row for row in measured if self.name and _words(self.name) <= _words(row.card)]
        if not rows:
            return Speed(self.peak_tflops * self.utilisation)
        best = max(rows, key=lambda row: row.tflops)
        floors = [row.layer_seconds for row in rows if row.layer_seconds]
        step = f"{best.examples_per_second:.0f} examples/s in batches of {best.batch}{f' of the shape {best.shape}' if best.shape else ''}"
        source = f"measured: {best.tflops:.0f} TFLOP/s, {step} on {best.card}; train.py reaches {100 * TRAINING_SHARE:.0f} % of it"
        return Speed(best.tflops, min(floors, default=LAYER_SECONDS), source, TRAINING_SHARE)


def _words(card: str) -> set[str]:
    """Return the words of a card's name: "A100-80GB" is an "NVIDIA A100-SXM4-80GB", and "A10" is not."""
    return set(re.findall(r"[a-z0-9]+", card.lower()))


def card_named(name: str) -> tuple[float, float]:
    """Return GB and peak TFLOP/s of a card by its name, in any case of letters; it may be longer, as nvidia-smi prints it.

    Raises:
        UserError: the card is not in `CARDS`.
    """
    words = _words(name)
    found = next((kind for known, kind in CARDS.items() if _words(known) <= words), None)
    # A MIG slice's name begins with that of the whole card.
    if found is None or "mig" in words:
        raise UserError(f"--card '{name}' is not known{nearest(name, CARDS)}; give --gpu_memory and --tflops instead")
    return found
