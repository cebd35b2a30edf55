"""Save a training step to files (the weights before it, its batches, random generator states), and replay it.

bad_batch-17/
  checkpoint/              weights, tokenizer and configuration
  batch_0.safetensors ...  input, losses and random generator states, one file per micro-batch
  report.json              which numbers were not finite, in which step, for which examples
  manifest.json            sizes and checksums
"""

import json
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from kava.checkpoint import Trained, load_checkpoint, write_weights
from kava.data.batch_file import read_batch, write_batch
from kava.data.collate import Batch
from kava.errors import UserError
from kava.losses.fused import check_fused_available
from kava.results import Record, parse_record, read_mapping
from kava.runtime.atomic import seal, verify, write_atomic
from kava.train.batch_step import autocast
from kava.train.guard import RecordedBatch, identity, restore_generators

REPORT = "report.json"
CHECKPOINT = "checkpoint"
_VALUE = "value."
_BATCH = "batch_{}.safetensors"
_CURE = "give a directory bad_batch-<step> of a run"


class Report(Record):
    """`report.json`: what was wrong in a step. `gradient_norm` is text, because JSON has no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: str
    step: int
    problem: str
    examples: list[str]
    gradient_norm: str
    batches: int


FORMAT = "kava.bad_batch/1"


@dataclass(frozen=True)
class ReplayedExample:
    """One example of a replayed step.

    Attributes:
        id: id in the data set.
        question: text of the question.
        losses: losses in the replay.
        recorded: losses recorded during training.
        gradient_norm: gradient norm of its own loss; None if any loss in its batch is not finite, which affects all gradients of the batch.
    """

    id: str
    question: str
    losses: dict[str, float]
    recorded: dict[str, float]
    gradient_norm: float | None

    @property
    def sound(self) -> bool:
        """Whether all numbers are finite."""
        return all(map(isfinite, [*self.losses.values(), self.gradient_norm or 0.0]))


@dataclass(frozen=True)
class Replayed:
    """Result of replaying a step, without the weight update."""

    report: Report
    examples: list[ReplayedExample]
    gradient_norm: float
    bad_parameters: list[str]

    @property
    def sound(self) -> bool:
        """Whether all numbers are finite in the replay."""
        return not self.bad_parameters and all(example.sound for example in self.examples)


def save_step(
    directory: Path, trained: Trained, seen: list[RecordedBatch], step: int, problem: str, examples: list[str], norm: float,
    weights: dict[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """Write everything that `replay` needs, atomically; `weights` as in `write_weights`.

    Raises:
        UserError: the disk is full or the directory is read-only.
    """

    def write(staging: Path) -> None:
        checkpoint = staging / CHECKPOINT
        checkpoint.mkdir()
        write_weights(checkpoint, trained, weights)
        seal(checkpoint)
        for index, one in enumerate(seen):
            write_batch(staging / _BATCH.format(index), one.batch, {**one.generators, **{f"{_VALUE}{k}": v for k, v in one.values.items()}})
        report = Report(format=FORMAT, step=step, problem=problem, examples=examples, gradient_norm=repr(norm), batches=len(seen))
        (staging / REPORT).write_text(json.dumps(report.model_dump(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    write_atomic(directory, write)


def replay(directory: str | Path, overrides: dict[str, Any] | None = None, device: str | None = None) -> Replayed:
    """Repeat a saved step with the same dropout, and examine each example separately.

    Args:
        directory: directory written by `save_step`.
        overrides: dotted configuration keys to change, such as `loss.kv_loss_type`.
        device: device to compute on (default: the CPU).

    Raises:
        UserError: there is no saved step, it is damaged, or its base model cannot be found.
    """
    directory = Path(directory)
    report = parse_record(Report, read_mapping(directory / REPORT, "report", _CURE), f"report {directory / REPORT}", _CURE)
    problem = verify(directory)
    if problem:
        raise UserError(f"{directory} is damaged: {problem}; copy it again")
    trained = load_checkpoint(directory / CHECKPOINT, overrides, device)
    model = trained.model.train()
    model.backbone.fused = trained.config.system.fused_cross_entropy
    if model.backbone.fused:
        check_fused_available(model.backbone.special_ids.device)
    saved = [read_batch(directory / _BATCH.format(index)) for index in range(report.batches)]
    total = sum(len(batch) for batch, _ in saved)
    examples: list[ReplayedExample] = []
    for batch, extra in saved:
        recorded = {name.removeprefix(_VALUE): tensor for name, tensor in extra.items() if name.startswith(_VALUE)}
        restore_generators(extra)
        examples += _examples(trained, batch if device is None else batch.to(device), recorded, total)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    bad = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    return Replayed(report, examples, _norm(list(gradients.values())), bad)


def _examples(trained: Trained, batch: Batch, recorded: dict[str, Tensor], total: int) -> list[ReplayedExample]:
    """Forward and backward pass of one batch; the gradients of the step accumulate in the parameters."""
    with autocast(trained.config.system.mixed_precision, batch.question_ids.device.type):
        output = trained.model(batch)
    losses: Tensor = output["loss"]
    values = {"loss": losses} | output["terms"]
    parameters = [parameter for parameter in trained.model.parameters() if parameter.requires_grad]
    told_apart = bool(losses.isfinite().all())
    norms = [_own_norm(loss, parameters) if told_apart else None for loss in losses]
    (losses.sum() / total).backward()
    questions = [ids[mask].tolist() for ids, mask in zip(batch.question_ids, batch.question_mask, strict=True)]
    return [
        ReplayedExample(
            id=identity(batch, row),
            question=trained.builder.text(questions[row]),
            losses={name: float(value[row].detach()) for name, value in values.items()},
            recorded={name: float(value[row]) for name, value in recorded.items()},
            gradient_norm=norms[row],
        )
        for row in range(len(batch))
    ]


def _own_norm(loss: Tensor, parameters: list[nn.Parameter]) -> float:
    return _norm(list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)))


def _norm(gradients: list[Tensor | None]) -> float:
    return float(torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None]))


def show(replayed: Replayed, everything: bool) -> None:
    """Print a replayed step: what was wrong, what is wrong now, and the examples with numbers that are not finite, or all examples."""
    console = Console(highlight=False)
    report = replayed.report
    console.print(Text(f"step {report.step}: {report.problem} (gradient norm {report.gradient_norm})"))
    shown = [example for example in replayed.examples if everything or not example.sound]
    if shown:
        table = Table("example", *shown[0].losses, "gradient", "question", title="this time")
        for example in shown:
            norm = "" if example.gradient_norm is None else f"{example.gradient_norm:.4g}"
            numbers = [*(f"{value:.4g}" for value in example.losses.values()), norm]
            table.add_row(*map(Text, (example.id, *numbers, example.question)))
        console.print(table)
    bad = replayed.bad_parameters
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        console.print(Text(f"gradients that are not finite: {', '.join(bad[:3])}{more}"))
    finite = sum(example.sound for example in replayed.examples)
    console.print(Text(f"{finite} of {len(replayed.examples)} examples are finite; gradient norm {replayed.gradient_norm:.4g}"))
