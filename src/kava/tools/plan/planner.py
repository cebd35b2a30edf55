"""Planner: the largest batch that fits a card, the fewest changes of settings that make it fit, and the training hours.

The speed of a card is the measured one if docs/results/gpu.json has it; otherwise a share of its published peak is assumed, and the
plan says so.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import PlainSerializer

from kava.config import Config, build_config
from kava.errors import UserError
from kava.model.build import stored_dtype
from kava.results import Record
from kava.tools.plan.cards import Card, Measured, Speed
from kava.tools.plan.shapes import DataShape, example_flops
from kava.train.footprint import GIB, RESERVED_FRACTION, Profile
from kava.train.micro_batches import MicroBatches, positions_of

# With fewer rows at once, the GPU is mostly idle, so the next set of changes is tried first.
ENOUGH_ROWS = 8


def _rounded(digits: int) -> PlainSerializer:
    return PlainSerializer(lambda value: round(value, digits))


class Way(Record):
    """One set of changes on one card, with the memory per GPU and the hours that it takes.

    `batch_size` is the largest number of rows per GPU that fits at once (0: not even one row); `gradient_accumulation_steps` is the
    number of such micro-batches per optimizer step.
    """

    changes: dict[str, Any]
    batch_size: int
    gradient_accumulation_steps: int
    gib: dict[str, Annotated[float, _rounded(2)]]
    total_gib: Annotated[float, _rounded(1)]
    hours: Annotated[float, PlainSerializer(lambda value: float(f"{value:.2g}"))]
    proposed: bool = False


class Plan(Record):
    """The options for one configuration on one card; memory is in GiB per GPU, except `gpu_memory`, which is in GB."""

    config: str
    model: str
    gpu_memory: float
    gpus: int
    fsdp: bool
    effective_batch: int
    tflops: Annotated[float, _rounded(1)]
    speed: str
    rows: int
    ways: list[Way]

    @property
    def chosen(self) -> Way | None:
        """The proposed option; None if nothing fits."""
        return next((way for way in self.ways if way.proposed), None)


class PlanFile(Record):
    """The file that `kava plan` writes. Memory is computed; hours rest on a measured speed only where `speed` says so."""

    format: Literal["kava.plan/2"] = "kava.plan/2"
    held_back: float = RESERVED_FRACTION
    plans: list[Plan]


class Planner:
    """Plans one configuration for any card; memory profiles and FLOPs are computed once per set of changes.

    Args:
        name: name of the configuration.
        shape: transformers configuration of the base model.
        config: configuration of the run.
        data: number and lengths of the training rows.
        measured: training steps that were measured on cards.
    """

    def __init__(self, name: str, shape: Any, config: Config, data: DataShape, measured: Sequence[Measured] = ()) -> None:
        self.name, self.shape, self.config, self.data, self.measured = name, shape, config, data, measured
        self._profiles: dict[tuple[bool, tuple[str, ...]], tuple[Profile, int]] = {}
        # Rows per optimizer step; a plan never changes it.
        self.effective_batch = config.training.batch_size * config.training.gradient_accumulation_steps

    def changes(self) -> list[dict[str, Any]]:
        """Return the distinct sets of changes that have an effect: fewer if the configuration already uses some of the settings."""
        # The dtype stays where mixed precision is off (the configuration refuses bfloat16 weights without autocast) and where the
        # weights are stored in bfloat16 anyway, which is the usual case on a GPU.
        kept = self.config.system.mixed_precision == "no" or stored_dtype(self.config, on_gpu=True) == torch.bfloat16
        half: dict[str, Any] = {} if kept else {"model.dtype": "bfloat16"}
        recompute = {} if self.config.training.gradient_checkpointing else {"training.gradient_checkpointing": True}
        found: list[dict[str, Any]] = []
        # In order of preference: bfloat16 weights, as they are published, come before recomputing, which repeats forward passes.
        for changes in ({}, half, recompute, half | recompute):
            if changes not in found:
                found.append(changes)
        return found

    def plan(self, card: Card) -> Plan:
        """Return the plan for a card, with every set of changes.

        Raises:
            UserError: the effective batch cannot be divided evenly over the GPUs, or a run on them would refuse the configuration.
        """
        if self.effective_batch % card.gpus:
            raise UserError(
                f"an effective batch of {self.effective_batch} cannot be divided over {card.gpus} GPUs; give --gpus a divisor of it"
            )
        if refused := refusal(self.config, {}, card.sharded):
            raise refused
        speed = card.speed(self.measured)
        ways = [self._way(changes, card, speed) for changes in self.changes() if not refusal(self.config, changes, card.sharded)]
        if (chosen := proposed(ways)) is not None:
            chosen.proposed = True
        return Plan(
            config=self.name, model=self.config.model.name, gpu_memory=card.gigabytes, gpus=card.gpus, fsdp=card.sharded,
            effective_batch=self.effective_batch, tflops=speed.tflops, speed=speed.source, rows=self.data.rows, ways=ways,
        )  # fmt: skip

    def _way(self, changes: dict[str, Any], card: Card, speed: Speed) -> Way:
        # What a key is changed to is the same in every set.
        key = card.sharded, tuple(changes)
        if key not in self._profiles:
            config = _changed(self.config, changes, card.sharded)
            self._profiles[key] = Profile(self.shape, config, self.data.longest), example_flops(self.shape, config, self.data)
        profile, flops = self._profiles[key]
        # One GPU keeps the configured batch size; with several, the share of each GPU becomes its batch size (see `advice`).
        share = self.config.training.batch_size if card.gpus == 1 else self.effective_batch // card.gpus
        sizes = (size for size in range(share, 0, -1) if share % size == 0)
        batch = next((size for size in sizes if profile.footprint(size, card.gpus, card.sharded).total <= card.room), 0)
        footprint = profile.footprint(batch or 1, card.gpus, card.sharded)
        layers = int(self.shape.get_text_config().num_hidden_layers)
        examples = training_examples(self.config, self.data)
        return Way(
            changes=changes, batch_size=batch, gradient_accumulation_steps=self.effective_batch // card.gpus // batch if batch else 0,
            gib={part: size / GIB for part, size in vars(footprint).items()}, total_gib=footprint.total / GIB,
            hours=hours(flops, examples, self._mean_rows(share, batch or 1), layers, card.gpus, speed),
        )  # fmt: skip

    def _mean_rows(self, share: int, batch: int) -> int:
        """Return how many rows of mean length are computed at once if `batch` of the longest rows fit."""
        longest, mean = (
            positions_of(self.config, row.question, row.cot - row.last_step * self.config.dataset.drop_last_step, row.answer)
            for row in (self.data.longest, self.data.mean)
        )
        return MicroBatches(share, batch * longest).rows_of(mean)


def refusal(config: Config, changes: dict[str, Any], sharded: bool) -> UserError | None:
    """Return why a run would refuse the changed configuration: settings exclude each other, such as fp16 and a sharded model."""
    try:
        _changed(config, changes, sharded)
    except UserError as error:
        return error
    return None


def _changed(config: Config, changes: dict[str, Any], sharded: bool) -> Config:
    return build_config(config.to_dict(), "the plan", changes | {"system.fsdp": sharded})


def proposed(ways: Sequence[Way]) -> Way | None:
    """Return the first option with enough rows at once, else the one with the most rows; None if nothing fits."""
    fitting = [way for way in ways if way.batch_size]
    enough = [way for way in fitting if way.batch_size >= min(ENOUGH_ROWS, way.batch_size * way.gradient_accumulation_steps)]
    return enough[0] if enough else max(fitting, key=lambda way: way.batch_size, default=None)


def training_examples(config: Config, data: DataShape) -> float:
    """Return the number of rows that a run trains on: rows times epochs, or optimizer steps times the effective batch."""
    training = config.training
    if training.max_steps > 0:
        return float(training.max_steps * training.batch_size * training.gradient_accumulation_steps)
    return float(data.rows * training.epochs)


def hours(flops: int | float, examples: int | float, rows: int, layers: int, gpus: int, speed: Speed) -> float:
    """Return the wall-clock hours of training, without validation.

    Args:
        flops: FLOPs of one row.
        examples: rows that the run trains on.
        rows: rows that a card computes at once.
        layers: layers of the model.
        gpus: number of GPUs that share the rows.
        speed: speed of each GPU.
    """
    seconds = max(rows * flops / (speed.tflops * 1e12), layers * speed.layer_seconds)
    return examples / rows * seconds / speed.share / gpus / 3600
