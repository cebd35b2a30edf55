"""Forward and backward pass of one micro-batch, the unit that repeats within a training step."""

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

from kava.config import Config
from kava.data.collate import Batch
from kava.methods import Method
from kava.model.adapters import Adapters
from kava.model.backbone import Backbone
from kava.model.kava import KavaModel
from kava.model.quantization import COMPUTE_DTYPES
from kava.runtime import processes
from kava.train.captured_step import CapturedStep


def autocast(precision: str, device: str) -> AbstractContextManager[object]:
    """Autocast context for `system.mixed_precision` on a device type; no autocast where that is "no"."""
    return torch.autocast(device, COMPUTE_DTYPES[precision]) if precision != "no" else nullcontext()


class BatchStep:
    """Computes a micro-batch and adds its gradients to `.grad`. This class itself never waits for the device.

    With `graphs`, a GPU runs one CUDA graph per shape (`kava.train.captured_step`), except with several processes, in fp16 (the loss
    scale changes), with compiled passes (a new shape may be compiled), and where a part of the model waits for the device
    (`Backbone.syncs_with_device`).

    Args:
        model: a `KavaModel`, plain or wrapped in `DistributedDataParallel`.
        precision: `system.mixed_precision`.
        scaler: loss scaler (fp16).
        graphs: `system.cuda_graphs`.
    """

    def __init__(self, model: nn.Module, precision: str, scaler: GradScaler, *, graphs: bool = False) -> None:
        self.model = model
        self.precision = precision
        self.scaler = scaler
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        device = trained[0].device
        self.captured: CapturedStep | None = None
        backbone = model.backbone if isinstance(model, KavaModel) and not model.is_sharded else None
        # None of several processes: the gradients that they average pass through autograd.
        self.adapters = backbone.adapters if backbone is not None else Adapters(())
        if graphs and device.type == "cuda" and can_be_captured(backbone, scaler):
            self.captured = CapturedStep(self._run, trained, device)

    def __call__(self, batch: Batch, examples: float, last: bool = True) -> dict[str, Float[Tensor, " B"]]:
        """The losses of every example: `loss` and the terms that it consists of.

        Args:
            batch: on the model's device.
            examples: number of examples that the step's loss is averaged over; infinity for a micro-batch that does not count.
            last: whether this is the last micro-batch of the step; with several processes, gradients are averaged in its backward pass.
        """
        if self.captured is not None:
            return self.captured(batch, examples)
        with self.model.no_sync() if isinstance(self.model, DistributedDataParallel) and not last else nullcontext():
            return self._run(batch, examples)

    def release(self) -> None:
        """Release the CUDA graphs and their memory."""
        if self.captured is not None:
            self.captured.release()

    def _run(self, batch: Batch, examples: float | Tensor) -> dict[str, Float[Tensor, " B"]]:
        """Forward and backward pass; in a CUDA graph, every replay casts the adapters' weights again."""
        if self.captured is not None:
            self.adapters.refresh()
        with self.adapters.sum_gradients():
            with autocast(self.precision, batch.question_ids.device.type):
                output = self.model(batch)
            self.scaler.scale(output["loss"].sum() / examples).backward()
        return {name: value.detach() for name, value in {"loss": output["loss"], **output["terms"]}.items()}


def can_be_captured(backbone: Backbone | None, scaler: GradScaler) -> bool:
    """Return whether a CUDA graph can record a step: of one process, with a loss scale that stays, and no waiting or compiling in it."""
    return backbone is not None and not (backbone.syncs_with_device or backbone.compiles or scaler.is_enabled())


def distribute(model: KavaModel, config: Config, device: torch.device) -> nn.Module:
    """Wrap the model in `DistributedDataParallel` for several processes; a sharded model needs no wrapper."""
    if processes.world_size() == 1 or config.system.fsdp:
        return model
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, find_unused_parameters=leaves_some_unused(model.method, config))


def leaves_some_unused(method: Method, config: Config) -> bool:
    """Return whether a step may leave trainable parameters without a gradient.

    Coconut's first stage and T = 0 do not use the projection; methods without latents do not read the rows of the new tokens.
    """
    return not method.uses_latents or method.curriculum == "replace_steps" or config.latent.num_iterations == 0
