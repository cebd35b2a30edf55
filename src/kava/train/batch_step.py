"""Forward and backward pass of one micro-batch: what repeats within a training step."""

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

from kava.data.collate import Batch
from kava.losses.total import TERM_NAMES

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: str) -> AbstractContextManager[object]:
    """The forward pass's precision, `system.mixed_precision`, on a device type."""
    return torch.autocast(device, _DTYPES[precision]) if precision in _DTYPES else nullcontext()


class BatchStep:
    """Adds a micro-batch's gradients to `.grad`. Nothing in here waits for the device.

    Args:
        model: a `KavaModel`, by itself or in `DistributedDataParallel`.
        precision: `system.mixed_precision`.
        scaler: of the loss (fp16).
    """

    def __init__(self, model: nn.Module, precision: str, scaler: GradScaler) -> None:
        self.model = model
        self.precision = precision
        self.scaler = scaler

    def __call__(self, batch: Batch, examples: float, last: bool = True) -> dict[str, Float[Tensor, " B"]]:
        """The losses of every example: `loss`, and the terms that it is made of.

        Args:
            batch: on the model's device.
            examples: that the step's loss is a mean over; infinitely many where these do not count.
            last: of the step; with several processes, their gradients are averaged in its backward pass.
        """
        with self.model.no_sync() if isinstance(self.model, DistributedDataParallel) and not last else nullcontext():
            with autocast(self.precision, batch.question_ids.device.type):
                output = self.model(batch)
            self.scaler.scale(output["loss"].sum() / examples).backward()
        terms = {name: getattr(output["terms"], name) for name in TERM_NAMES}
        return {"loss": output["loss"].detach()} | {name: value.detach() for name, value in terms.items() if value is not None}
