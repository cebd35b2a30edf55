"""Numbers that stop making sense: each optimizer step is looked at once, and a bad one changes nothing.

The check reads one number from the device per step. Only where that number is bad are losses, terms and examples looked at.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kava.data.collate import Batch

SHOWN_EXAMPLES = 4
TOTAL = "loss"


@dataclass(frozen=True)
class Seen:
    """One batch of the step that is being taken.

    Attributes:
        batch: what the model was given.
        generators: states of the random generators before the forward pass, by device type.
        values: the loss and its terms of every example, [B] each.
    """

    batch: Batch
    generators: dict[str, Tensor]
    values: Mapping[str, Tensor]


def generator_states() -> dict[str, Tensor]:
    """The states that dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_generators(states: Mapping[str, Tensor]) -> None:
    """Set the generators of the devices that this machine has."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def is_sound(losses: list[Tensor], gradient_norm: Tensor | None, world_size: int = 1) -> bool:
    """Whether all numbers of a step are finite, on every rank: the one value per step that the host waits for.

    Args:
        losses: per-example losses of its batches, [B] each.
        gradient_norm: over all parameters; None where a loss scaler deals with gradients itself.
    """
    sound = torch.stack([loss.detach().sum() for loss in losses]).isfinite().all()
    if gradient_norm is not None:
        sound = sound & torch.as_tensor(gradient_norm, device=sound.device).isfinite()
    if world_size > 1:
        # Ranks that disagree on a step would wait for each other for ever.
        agreed = sound.to(torch.int32)
        torch.distributed.all_reduce(agreed, op=torch.distributed.ReduceOp.MIN)
        sound = agreed
    return bool(sound)


def explain(seen: list[Seen], gradient_norm: float) -> tuple[str, list[str]]:
    """Which numbers are bad, in words, and the ids of the examples that they belong to (all of the step's for a gradient)."""
    bad: dict[str, list[float]] = {}
    examples: dict[str, None] = {}
    for one in seen:
        for name, values in one.values.items():
            numbers = values.detach().float().cpu()
            for row in (~numbers.isfinite()).nonzero()[:, 0].tolist():
                bad.setdefault(name, []).append(float(numbers[row]))
                examples[_identity(one.batch, row)] = None
    if not bad:
        return f"the gradient is {_kind([gradient_norm])} though all losses are finite", [name for one in seen for name in _identities(one)]
    # The total is bad with any of its terms: it is named where it is bad by itself.
    names = [name for name in bad if name != TOTAL] or [TOTAL]
    total = sum(len(one.batch) for one in seen)
    verb = "is" if len(names) == 1 else "are"
    kinds = _kind([value for name in names for value in bad[name]])
    return f"{_listed(names)} {verb} {kinds} in {len(examples)} of {total} examples", list(examples)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]


def _kind(values: list[float]) -> str:
    return "NaN" if any(value != value for value in values) else "infinite"


def _identities(one: Seen) -> list[str]:
    return [_identity(one.batch, row) for row in range(len(one.batch))]


def _identity(batch: Batch, row: int) -> str:
    return batch.ids[row] if batch.ids else f"row {row}"


def shown(examples: list[str]) -> str:
    """The first few of a list."""
    return ", ".join(examples[:SHOWN_EXAMPLES]) + (f" and {len(examples) - SHOWN_EXAMPLES} more" if len(examples) > SHOWN_EXAMPLES else "")
