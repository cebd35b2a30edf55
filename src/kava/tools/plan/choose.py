"""What to run a configuration with on a card: the largest batch that fits, and the fewest changes that make it fit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kava.config import Config, build_config
from kava.errors import UserError
from kava.model.build import stored_dtype
from kava.tools.plan.hours import CARDS, UTILISATION, Measured, Speed, example_flops, hours, speed_of, training_examples
from kava.tools.plan.shapes import DataShape
from kava.train.footprint import GIB, HELD_BACK, Footprint, Profile
from kava.train.micro_batches import MicroBatches, positions_of

# Below this many rows a step is mostly waiting: the next change is tried first.
ENOUGH_ROWS = 8
# In the order in which they are proposed. Weights are stored as they are published, in bfloat16, before work is done twice.
CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"model.dtype": "bfloat16"},
    {"training.gradient_checkpointing": True},
    {"model.dtype": "bfloat16", "training.gradient_checkpointing": True},
)


@dataclass(frozen=True)
class Card:
    """GPUs to train on: GB of each, how many, whether the model is split over them, their peak, the share of it assumed, their name."""

    gigabytes: int | float
    gpus: int = 1
    sharded: bool = False
    tflops: float | None = None
    utilisation: float = UTILISATION
    name: str | None = None

    @property
    def room(self) -> float:
        """Bytes that training may take on each."""
        return self.gigabytes * GIB * (1 - HELD_BACK)

    @property
    def peak_tflops(self) -> float:
        """As given, or that of the largest card in the table that is no larger."""
        smaller = [kind for kind in CARDS.values() if kind.gigabytes <= self.gigabytes] or [min(CARDS.values(), key=lambda k: k.gigabytes)]
        # Of cards of one size the slowest.
        return self.tflops or min(smaller, key=lambda kind: (-kind.gigabytes, kind.tflops)).tflops

    def speed(self, measured: Sequence[Measured]) -> Speed:
        """Measured or assumed."""
        return speed_of(self.name, self.peak_tflops, self.utilisation, list(measured))


@dataclass(frozen=True)
class Way:
    """One set of changes on one card: the most rows per GPU that fit at once (0: not even one), in how many parts, and what they need."""

    changes: dict[str, Any]
    batch_size: int
    accumulation: int
    footprint: Footprint
    hours: float


class Planner:
    """Everything that is computed once per configuration.

    Args:
        shape: transformers' configuration of the base model.
        config: of the run.
        data: rows and lengths.
        measured: training steps on cards.
    """

    def __init__(self, shape: Any, config: Config, data: DataShape, measured: Sequence[Measured] = ()) -> None:
        self.shape, self.config, self.data, self.measured = shape, config, data, measured
        self._profiles: dict[int, tuple[Profile, int]] = {}

    @property
    def effective_batch(self) -> int:
        """Rows per optimizer step, which a plan keeps."""
        return self.config.training.batch_size * self.config.training.gradient_accumulation_steps

    def changes(self) -> list[dict[str, Any]]:
        """Those that change something: a configuration that already recomputes or stores bfloat16 has fewer."""
        content = self.config.to_dict()

        def new(changes: dict[str, Any]) -> dict[str, Any]:
            return {key: value for key, value in changes.items() if content[key.split(".")[0]][key.split(".")[1]] != value}

        # Without autocast the arithmetic would be bfloat16 too, which the configuration refuses; and on a GPU they mostly are stored so.
        kept = self.config.system.mixed_precision == "no" or stored_dtype(self.config, on_gpu=True) == torch.bfloat16
        found = [new({key: value for key, value in changes.items() if not (kept and key == "model.dtype")}) for changes in CHANGES]
        return [changes for index, changes in enumerate(found) if changes not in found[:index]]

    def ways(self, card: Card) -> list[Way]:
        """Every set of changes on a card.

        Raises:
            UserError: the effective batch cannot be divided over the GPUs.
        """
        if self.effective_batch % card.gpus:
            raise UserError(
                f"an effective batch of {self.effective_batch} cannot be divided over {card.gpus} GPUs; give --gpus a divisor of it"
            )
        return [self._way(index, changes, card) for index, changes in enumerate(self.changes())]

    def _way(self, index: int, changes: dict[str, Any], card: Card) -> Way:
        if index not in self._profiles:
            config = build_config(self.config.to_dict(), "the plan", changes)
            self._profiles[index] = Profile(self.shape, config, self.data.longest), example_flops(self.shape, config, self.data)
        profile, flops = self._profiles[index]
        share = self.effective_batch // card.gpus
        sizes = [size for size in range(share, 0, -1) if share % size == 0]
        fitting = (size for size in sizes if profile.footprint(size, card.gpus, card.sharded).total <= card.room)
        batch = next(fitting, 0)
        footprint = profile.footprint(batch or 1, card.gpus, card.sharded)
        examples = training_examples(self.config, self.data)
        layers = int(self.shape.get_text_config().num_hidden_layers)
        expected = hours(flops, examples, self._mean_rows(share, batch or 1), layers, card.gpus, card.speed(self.measured))
        return Way(changes, batch, share // batch if batch else 0, footprint, expected)

    def _mean_rows(self, share: int, batch: int) -> int:
        """Rows of mean length that are computed at once where so many of the longest are."""
        longest, mean = (
            positions_of(self.config, row.question, row.cot - row.last_step * self.config.dataset.drop_last_step, row.answer)
            for row in (self.data.longest, self.data.mean)
        )
        return MicroBatches(share, batch * longest).rows_of(mean)


def proposed(ways: Sequence[Way]) -> Way | None:
    """The first way with enough rows per step, else the one with the most; None where nothing fits."""
    fitting = [way for way in ways if way.batch_size]
    enough = [way for way in fitting if way.batch_size >= min(ENOUGH_ROWS, way.batch_size * way.accumulation)]
    return enough[0] if enough else max(fitting, key=lambda way: way.batch_size, default=None)


def why_nothing_fits(name: str, card: Card, ways: Sequence[Way]) -> str:
    """One sentence with the cure."""
    least = min(ways, key=lambda way: way.footprint.total)
    need = least.footprint.total / GIB
    whole = math.ceil(need / (1 - HELD_BACK))
    split = "" if card.sharded else f", or split it over several: --gpus {2 * card.gpus} --fsdp"
    return (
        f"{name} does not fit {card.gigabytes:g} GB: the least it takes is {need:.1f} GiB per GPU, with one row at a time"
        f"{' and ' + options(least.changes) if least.changes else ''}; take a card of {whole} GB or more{split}, "
        "or shorter rows (--dataset.max_length)"
    )


def advice(planner: Planner, card: Card, way: Way) -> str:
    """What to type. A run cuts its batches by itself, so that only what differs from the configuration is said."""
    training = planner.config.training
    share = planner.effective_batch // card.gpus
    size = {} if card.gpus == 1 else {"training.batch_size": share, "training.gradient_accumulation_steps": 1}
    changes = size | way.changes | ({"system.fsdp": True} if card.sharded else {})
    at_once = f"{way.batch_size} of {share if size else training.batch_size} rows of the longest at once"
    return f"{f'proposed: {options(changes)}' if changes else 'runs as configured'} ({at_once})"


def options(changes: dict[str, Any]) -> str:
    """Changes as one types them."""
    return " ".join(f"--{key} {str(value).lower() if isinstance(value, bool) else value}" for key, value in changes.items())
