"""Checks for non-finite numbers: each optimizer step is checked once, and a bad step is not applied.

The check reads one number from the device per step. Losses, terms and examples are only inspected if it fails.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kava.data.collate import Batch

SHOWN_EXAMPLES = 4
TOTAL = "loss"


@dataclass(frozen=True)
class RecordedBatch:
    """One micro-batch of the current step.

    Attributes:
        batch: the input of the model.
        generators: states of the random generators before the forward pass, by device type.
        values: the loss and its terms of every example, [B] each.
    """

    batch: Batch
    generators: dict[str, Tensor]
    values: Mapping[str, Tensor]


def generator_states() -> dict[str, Tensor]:
    """States of the random generators that dropout draws from, by device type."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_generators(states: Mapping[str, Tensor]) -> None:
    """Restore the states from `generator_states`, for the devices that this machine has."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def all_finite(losses: list[Tensor], gradient_norm: Tensor | None, world_size: int = 1) -> bool:
    """Whether all numbers of a step are finite on every rank. The host waits for this one value per step.

    Args:
        losses: per-example losses of the step's micro-batches, [B] each.
        gradient_norm: norm over all parameters; None if a loss scaler checks the gradients itself.
    """
    sound = torch.stack([loss.detach().sum() for loss in losses]).isfinite().all()
    if gradient_norm is not None:
        sound = sound & torch.as_tensor(gradient_norm, device=sound.device).isfinite()
    if world_size > 1:
        # Ranks that decide differently would wait for each other forever.
        agreed = sound.to(torch.int32)
        torch.distributed.all_reduce(agreed, op=torch.distributed.ReduceOp.MIN)
        sound = agreed
    return bool(sound)


def explain(seen: list[RecordedBatch], gradient_norm: float, own: str = "") -> tuple[str, list[str]]:
    """Describe which numbers are not finite; also returns the ids of their examples (all of the step's if only the gradient is bad)."""
    bad: dict[str, list[float]] = {}
    examples: dict[str, None] = {}
    for one in seen:
        for name, values in one.values.items():
            numbers = values.detach().float().cpu()
            for row in (~numbers.isfinite()).nonzero()[:, 0].tolist():
                bad.setdefault(name, []).append(float(numbers[row]))
                examples[identity(one.batch, row)] = None
    if not bad:
        return f"the gradient is {_kind([gradient_norm])} though all losses{own} are finite", [
            name for one in seen for name in _identities(one)
        ]
    # The total is bad whenever one of its terms is bad, so it is named only if no term is.
    names = [name for name in bad if name != TOTAL] or [TOTAL]
    total = sum(len(one.batch) for one in seen)
    verb = "is" if len(names) == 1 else "are"
    kinds = _kind([value for name in names for value in bad[name]])
    return f"{_listed(names)} {verb} {kinds} in {len(examples)} of {total} examples", list(examples)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]


def _kind(values: list[float]) -> str:
    return "NaN" if any(value != value for value in values) else "infinite"


def _identities(one: RecordedBatch) -> list[str]:
    return [identity(one.batch, row) for row in range(len(one.batch))]


def identity(batch: Batch, row: int) -> str:
    """Id of an example in the data set, or else its place in the batch."""
    return batch.ids[row] if batch.ids else f"row {row}"


def shown(examples: list[str]) -> str:
    """The first few examples, and how many more there are."""
    return ", ".join(examples[:SHOWN_EXAMPLES]) + (f" and {len(examples) - SHOWN_EXAMPLES} more" if len(examples) > SHOWN_EXAMPLES else "")
