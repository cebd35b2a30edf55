"""GPU memory of a training step for any batch size, extrapolated from traces of two shallow models.

All layers are alike, so the bytes of a step are a linear function of the number of layers, which two depths determine.
"""

import copy
from dataclasses import dataclass, fields
from typing import Any

from kava.config import Config
from kava.errors import UserError, reason_of
from kava.train.step_trace import Lengths, Traced, trace_step

GIB = 2**30
# Share of GPU memory for the CUDA context, kernel workspaces and memory that the allocator cannot use. Assumed, not measured.
RESERVED_FRACTION = 0.1
# Bytes of optimizer state: per byte of the trained weights, and per trained parameter (8-bit states).
_STATES = {"sgd": (0.0, 0.0), "adafactor": (0.0, 0.0), "lion_32bit": (1.0, 0.0)}
_ADAM, _EIGHT_BIT = (2.0, 0.0), (0.0, 2.0)


@dataclass(frozen=True)
class Footprint:
    """Memory used on one GPU while a batch is trained, in bytes.

    Attributes:
        weights: frozen weights and buffers.
        trained: trained weights: adapters, new token rows and projection, or all weights.
        gradients: gradients of the trained weights; with several GPUs that each hold the whole model, counted twice: they are copied
            to communication buckets.
        optimizer: optimizer state.
        activations: what the forward passes keep for the backward pass: question, teacher, latents of every iteration, answer,
            their caches, the logits of trace and answer.
        working: everything else that is alive at the peak, including recorded importance and losses.
        gathered: weights of a sharded model that are gathered in full at the same time.
    """

    weights: float
    trained: float
    gradients: float
    optimizer: float
    activations: float
    working: float
    gathered: float = 0.0

    @property
    def total(self) -> float:
        """Sum of all fields."""
        return float(sum(getattr(self, item.name) for item in fields(self)))


class Profile:
    """Memory of a configuration's training step, for any batch size.

    Args:
        shape: transformers' configuration of the base model.
        config: run configuration.
        lengths: token counts of every row.

    Raises:
        UserError: the architecture cannot be traced.
    """

    def __init__(self, shape: Any, config: Config, lengths: Lengths) -> None:
        layers = int(shape.get_text_config().num_hidden_layers)
        kinds = set(getattr(shape.get_text_config(), "layer_types", None) or [""])
        low, high = (1, 2) if len(kinds) == 1 else (2, 4)
        low, high = min(low, layers), min(high, layers + 1)
        self.optimizer = config.training.optimizer
        try:
            self._shallow, self._deep = (trace_step(of_depth(shape, depth), config, lengths) for depth in (low, high))
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            reason = reason_of(error)
            raise UserError(f"the memory of model '{config.model.name}' cannot be estimated from shapes ({reason})") from None
        self._share = (layers - low) / (high - low)
        weights = [trace.weights[0] + trace.weights[1] for trace in (self._shallow, self._deep)]
        self._layer = (weights[1] - weights[0]) / (high - low)
        self._root = weights[0] - low * self._layer

    def at(self, batch_size: int) -> Traced:
        """The traced bytes at a batch size."""
        return _combine(self._shallow.at(batch_size), 1 - self._share, self._deep.at(batch_size), self._share)

    def footprint(self, batch_size: int, gpus: int = 1, sharded: bool = False) -> Footprint:
        """Bytes on each of `gpus` GPUs; `sharded`: weights, gradients and optimizer state are sharded over them (`system.fsdp`)."""
        traced = self.at(batch_size)
        per_byte, per_number = _state_of(self.optimizer)
        optimizer = per_byte * traced.trained + per_number * traced.trainable
        kept, copies = (gpus, 1) if sharded else (1, 2 if gpus > 1 else 1)
        # Embeddings, head and projection stay gathered; of the layers, one computes while the next one is being gathered.
        gathered = self._root + 2 * self._layer if sharded and gpus > 1 else 0.0
        return Footprint(
            weights=traced.frozen / kept,
            trained=traced.trained / kept,
            gradients=copies * traced.gradients / kept,
            optimizer=optimizer / kept,
            activations=traced.held,
            working=max(traced.peak - traced.held, 0.0),
            gathered=gathered,
        )


def _combine(a: Traced, weight_a: float, b: Traced, weight_b: float) -> Traced:
    return Traced(**{item.name: weight_a * getattr(a, item.name) + weight_b * getattr(b, item.name) for item in fields(Traced)})


def _state_of(optimizer: str) -> tuple[float, float]:
    """Bytes of state as in `_STATES`; an unknown optimizer is assumed to keep two moments per weight, as AdamW does."""
    return _STATES.get(optimizer, _EIGHT_BIT if "8bit" in optimizer else _ADAM)


def of_depth(shape: Any, layers: int) -> Any:
    """A copy of the model configuration with `layers` layers."""
    changed = copy.deepcopy(shape)
    text = changed.get_text_config()
    if getattr(text, "layer_types", None):
        text.layer_types = (list(text.layer_types) * layers)[:layers]
    text.num_hidden_layers = layers
    return changed
