"""Optimizer and learning-rate schedule of a run, by their Hugging Face names, and how a step updates the weights with them."""

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_

from kava.config import Config
from kava.config.schema import TrainingConfig
from kava.errors import UserError, nearest, reason_of
from kava.runtime.optional_packages import require
from kava.train.sharding import gather_full_tensor, make_portable

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

# No weight decay for scales and biases.
_NOT_DECAYED = ["bias", "layernorm", "rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]


def check_optimizer(name: str) -> None:
    """Check by its name whether `training.optimizer` can be used here.

    Raises:
        UserError: it is unknown, needs a package that is not installed, or does not work with this training loop.
    """
    from transformers.training_args import OptimizerNames

    known = [str(item.value) for item in OptimizerNames]
    if name not in known:
        raise UserError(f"training.optimizer '{name}' is unknown{nearest(name, known)}")
    if name == "adamw_8bit" or any(kind in name for kind in ("bnb", "paged", "lion", "ademamix")):
        require("bitsandbytes", f"training.optimizer {name}", "set it to adamw_torch")
    if "lomo" in name:
        raise UserError(f"training.optimizer {name} changes weights before a step's numbers are known to be finite; set it to adamw_torch")
    if "schedule_free" in name:
        raise UserError(
            f"training.optimizer {name} evaluates with weights that differ from the trained and saved ones; set it to adamw_torch"
        )


def build_optimizer(model: nn.Module, training: TrainingConfig, device: torch.device, sharded: bool = False) -> torch.optim.Optimizer:
    """The optimizer of all trained parameters.

    Args:
        model: the model, on its device.
        training: training configuration, with the optimizer's name and settings.
        device: device that the optimizer runs on.
        sharded: whether the model is sharded over the processes.

    Raises:
        UserError: it needs a package or a device that is not available.
    """
    check_optimizer(training.optimizer)
    from transformers.trainer_pt_utils import get_parameter_names

    decayed = set(get_parameter_names(model, [nn.LayerNorm], _NOT_DECAYED))
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for name, parameter in trained if name in decayed], "weight_decay": training.weight_decay},
        {"params": [parameter for name, parameter in trained if name not in decayed], "weight_decay": 0.0},
    ]
    try:
        kind, options = _class_and_options(model, training, device)
        optimizer: torch.optim.Optimizer = kind(groups, **options)
    except (ImportError, ValueError, RuntimeError) as error:
        raise UserError(f"training.optimizer {training.optimizer} cannot be used here: {reason_of(error)}") from None
    if options.get("optim_bits") == 8:
        _keep_embeddings_in_32_bits(model)
    if sharded:
        make_portable(optimizer)
    return optimizer


def _class_and_options(model: nn.Module, training: TrainingConfig, device: torch.device) -> tuple[Any, dict[str, Any]]:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(optim=training.optimizer, learning_rate=training.learning_rate, use_cpu=device.type == "cpu")
    model_class: Any = model
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model_class)
    if kind is torch.optim.AdamW and device.type == "cuda":
        options["fused"] = True
    return kind, options


def _keep_embeddings_in_32_bits(model: nn.Module) -> None:
    """Keep optimizer states of embeddings in 32 bits, as bitsandbytes advises: their gradients are too uneven for 8 bits."""
    from bitsandbytes.optim import GlobalOptimManager

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            GlobalOptimManager.get_instance().register_module_override(module, "weight", {"optim_bits": 32})


def build_schedule(optimizer: torch.optim.Optimizer, training: TrainingConfig, max_steps: int) -> "LRScheduler":
    """`training.lr_scheduler` after a warm-up of `training.warmup_ratio` of the steps."""
    from transformers import get_scheduler

    # PyTorch warns about the order of calls if the first step is skipped.
    warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
    warmup = math.ceil(max_steps * training.warmup_ratio)
    schedule: LRScheduler = get_scheduler(training.lr_scheduler, optimizer, num_warmup_steps=warmup, num_training_steps=max_steps)
    return schedule


class Updates:
    """Updates the weights of a model from its gradients.

    Args:
        model: the model, on its device.
        config: run configuration.
        device: device of the model.
        max_steps: number of steps of the run.

    Attributes:
        optimizer, schedule, scaler: of the weights, of the learning rate and of the loss (fp16).

    Raises:
        UserError: the optimizer cannot be used here.
    """

    def __init__(self, model: nn.Module, config: Config, device: torch.device, max_steps: int) -> None:
        self.model, self.device = model, device
        self.max_norm = config.training.max_grad_norm
        self.optimizer = build_optimizer(model, config.training, device, config.system.fsdp)
        self.schedule = build_schedule(self.optimizer, config.training, max_steps)
        self.scaler = GradScaler(device.type, enabled=config.system.mixed_precision == "fp16")

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next update."""
        return float(self.schedule.get_last_lr()[0])

    @property
    def lowers_scale(self) -> bool:
        """Whether an infinite gradient may come from the loss scale (fp16); the scaler then skips the step and lowers it, down to 1."""
        return self.scaler.is_enabled() and self.scaler.get_scale() >= 1

    def parts(self) -> dict[str, Any]:
        """What a checkpoint stores, by file name."""
        return {"optimizer": self.optimizer, "scheduler": self.schedule, "scaler": self.scaler}

    def clip(self) -> Tensor:
        """Unscale and clip the gradient; returns its norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        return gather_full_tensor(clip_grad_norm_(self.model.parameters(), self.max_norm))

    def apply(self, sound: bool) -> None:
        """Update the weights (unless the step is skipped) and the learning rate, and reset the gradients for the next step."""
        if sound:
            self.scaler.step(self.optimizer)
        scale = self.scaler.get_scale()
        self.scaler.update()
        # The scaler lowers its scale when it skips a step; the learning rate then does not change.
        if self.scaler.get_scale() >= scale:
            self.schedule.step()
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """Reset the gradients."""
        # On a GPU the gradient tensors are kept: CUDA graphs were captured with their addresses.
        self.optimizer.zero_grad(set_to_none=self.device.type != "cuda")

    def forget_state(self) -> None:
        """Clear the state of the optimizer; the learning rate goes on."""
        self.optimizer.state.clear()
