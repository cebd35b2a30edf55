"""Forward and backward pass of one micro-batch: what repeats within a training step."""

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

from kava.data.collate import Batch
from kava.model.adapters import Adapters
from kava.model.kava import KavaModel
from kava.train.captured_step import CapturedStep

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: str) -> AbstractContextManager[object]:
    """The forward pass's precision, `system.mixed_precision`, on a device type."""
    return torch.autocast(device, _DTYPES[precision]) if precision in _DTYPES else nullcontext()


class BatchStep:
    """Adds a micro-batch's gradients to `.grad`. Nothing in here waits for the device.

    On a GPU it is one CUDA graph per shape (`kava.train.captured_step`), except over several processes, in fp16, whose scale changes,
    and where a part waits for the device (`Backbone.waits`).

    Args:
        model: a `KavaModel`, by itself or in `DistributedDataParallel`.
        precision: `system.mixed_precision`.
        scaler: of the loss (fp16).
        graphs: `system.cuda_graphs`.
    """

    def __init__(self, model: nn.Module, precision: str, scaler: GradScaler, *, graphs: bool = False) -> None:
        self.model = model
        self.precision = precision
        self.scaler = scaler
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        device = trained[0].device
        self.captured: CapturedStep | None = None
        self.adapters: Adapters | None = None
        wanted = graphs and device.type == "cuda" and not scaler.is_enabled()
        if wanted and isinstance(model, KavaModel) and not model.split and not model.backbone.waits:
            self.captured, self.adapters = CapturedStep(self._run, trained, device), model.backbone.adapters

    def __call__(self, batch: Batch, examples: float, last: bool = True) -> dict[str, Float[Tensor, " B"]]:
        """The losses of every example: `loss`, and the terms that it is made of.

        Args:
            batch: on the model's device.
            examples: that the step's loss is a mean over; infinitely many where these do not count.
            last: of the step; with several processes, their gradients are averaged in its backward pass.
        """
        if self.captured is not None:
            return self.captured(batch, examples)
        with self.model.no_sync() if isinstance(self.model, DistributedDataParallel) and not last else nullcontext():
            return self._run(batch, examples)

    def release(self) -> None:
        """Give back what is held for shapes that were computed before."""
        if self.captured is not None:
            self.captured.release()

    def _run(self, batch: Batch, examples: float | Tensor) -> dict[str, Float[Tensor, " B"]]:
        """Forward and backward pass; in a graph, the adapters' weights are cast anew by every replay."""
        if self.adapters is not None:
            self.adapters.refresh()
        with autocast(self.precision, batch.question_ids.device.type):
            output = self.model(batch)
        self.scaler.scale(output["loss"].sum() / examples).backward()
        return {name: value.detach() for name, value in {"loss": output["loss"], **output["terms"]}.items()}
