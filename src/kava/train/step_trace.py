"""Memory of a training step without computing it: the real step runs on fake tensors, which have shapes but no data.

This module has no formula for any layer. The step is the same as in training (`KavaModel` with the same adapters, recomputation and
autocast). It runs on PyTorch's fake tensors, and a ledger adds up the storages that are alive at each moment. So everything that the
step keeps is counted, in any architecture.
"""

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kava.config import Config
from kava.data.collate import Batch, Collator
from kava.data.sequences import EncodedExample
from kava.losses.total import combine
from kava.methods import METHODS
from kava.model import layer_kernels
from kava.model.adapted_layer import fuse_adapted_layers
from kava.model.build import random_model
from kava.model.kava import KavaModel
from kava.runtime.device import as_on_gpu
from kava.train.batch_step import autocast

PROMPT_TOKENS = 4
# Rows of the traced batch. A prime that divides no size of a model, so that a storage whose size is a multiple of it has a batch dimension.
ROWS = 1009
# Bytes per weight in NF4: four bits, one byte of scale per 64 weights, and four bytes per 256 scales.
NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class Lengths:
    """Token counts of a row: question, written trace (`last_step` is the part of its last step), answer with its prompt and EOS."""

    question: int
    cot: int
    last_step: int
    answer: int

    def scaled(self, factor: float) -> "Lengths":
        """Token counts multiplied by `factor`, rounded up."""
        return Lengths(*(math.ceil(factor * part) for part in astuple(self)))


@dataclass(frozen=True)
class Traced:
    """Memory of one training step, in bytes.

    Attributes:
        frozen: weights that are not trained, and buffers.
        trained: trained weights: adapters, new token rows and projection, or all weights.
        gradients: gradients of the trained weights.
        trainable: number of trained parameters (not bytes).
        held: what the forward pass keeps for the backward pass: activations of all passes, caches, logits.
        peak: maximum besides weights and gradients at any moment of the forward and backward pass; includes `held`.
    """

    frozen: float
    trained: float
    gradients: float
    trainable: float
    held: float
    peak: float


@dataclass(frozen=True)
class Trace:
    """Memory of a step for any batch size: at each moment, a fixed number of bytes plus a number of bytes per row.

    Attributes:
        weights: `frozen`, `trained`, `gradients` and `trainable` of `Traced`.
        held: (bytes, bytes per row) after the forward pass.
        moments: the same at every moment that may be a peak.
    """

    weights: tuple[float, float, float, float]
    held: tuple[float, float]
    moments: tuple[tuple[float, float], ...]

    def at(self, batch_size: int) -> Traced:
        """Bytes at a batch size."""
        held, *moments = (float(fixed + batch_size * row) for fixed, row in (self.held, *self.moments))
        return Traced(*self.weights, held, max(moments))


class Ledger(TorchDispatchMode):
    """Adds up the bytes of all storages that operations create, while they are alive.

    Args:
        given: tensors that existed before and are not counted.
        rows: number of rows of the batch, a prime: a storage is counted per row if its size is a multiple of it.
    """

    def __init__(self, given: Sequence[Tensor], rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = rows
        self.fixed = 0
        self.per_row = 0
        # For each number of bytes per row, the maximum number of fixed bytes seen with it.
        self.moments: dict[int, int] = {0: 0}
        self._known = {tensor.untyped_storage()._cdata: 0 for tensor in given}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and record the storages of its outputs."""
        output = func(*args, **(kwargs or {}))
        if func is not torch.ops.prim.device.default:
            for value in tree_leaves(output):
                if isinstance(value, Tensor):
                    self._enter(value.untyped_storage())
        return output

    def _enter(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self._add(storage.nbytes(), 1)
        self.moments[self.per_row] = max(self.fixed, self.moments.get(self.per_row, 0))
        weakref.finalize(storage, self._leave, key)

    def _leave(self, key: int) -> None:
        self._add(self._known.pop(key), -1)

    def _add(self, size: int, sign: int) -> None:
        if size % self.rows:
            self.fixed += sign * size
        else:
            self.per_row += sign * (size // self.rows)


def trace_step(shape: Any, config: Config, lengths: Lengths, rows: int = ROWS) -> Trace:
    """Trace the forward and backward pass of one batch whose rows all have these lengths; gradients are already allocated.

    Args:
        shape: transformers' configuration of the base model.
        config: run configuration; its batch size is ignored.
        lengths: token counts of every row.
        rows: number of rows of the traced batch, a prime.
    """
    fake = FakeTensorMode()
    with _quiet_backward():
        model = random_model(shape, config, "meta").train()
        _replace(model, fake)
        real = longest_batch(config, rows, lengths)
        batch = real.mapped(fake.from_tensor)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        with fake:
            model.backbone.share_adapter_inputs()
            if _fuses(config):
                fuse_adapted_layers(model.backbone, check=False)
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
            with model.backbone.adapters.sum_gradients():
                held, moments = _run(model, batch, config)
    frozen = _bytes([*model.parameters(), *model.buffers()]) - _bytes(trained)
    if config.model.quantization == "4bit":
        maps = [module.weight for module in model.backbone.decoder.modules() if isinstance(module, nn.Linear)]
        frozen -= round(sum(weight.numel() * (weight.element_size() - NF4_BYTES) for weight in maps if not weight.requires_grad))
    gradients = _bytes([parameter.grad for parameter in trained if parameter.grad is not None])
    trainable = sum(parameter.numel() for parameter in trained)
    return Trace((float(frozen), float(_bytes(trained)), float(gradients), float(trainable)), held, moments)


def _fuses(config: Config) -> bool:
    """Whether training on a GPU fuses layers, as `Loop` does; half precision means that a GPU's memory is estimated."""
    system = config.system
    return system.fused_kernels and not system.fsdp and not system.compile and system.mixed_precision != "no"


def _run(model: KavaModel, batch: Batch, config: Config) -> tuple[tuple[float, float], tuple[tuple[float, float], ...]]:
    """(bytes, bytes per row) after the forward pass, and at every moment that may be a peak."""
    precision = config.system.mixed_precision
    given = [*model.parameters(), *model.buffers(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]
    ledger = Ledger(given, len(batch))
    # Half precision means that the memory of a GPU is estimated, where SDPA computes short sequences too.
    with ledger, as_on_gpu() if precision != "no" else nullcontext(), layer_kernels.replaced(layer_kernels.outputs_only()):
        with autocast(precision, "cpu"):
            terms = model.losses(batch)
            loss = combine(terms, model.settings.weights).mean()
        del terms
        held = float(ledger.fixed), float(ledger.per_row)
        loss.backward()
    return held, _peaks(ledger.moments)


def _peaks(moments: dict[int, int]) -> tuple[tuple[float, float], ...]:
    """Moments that no other moment exceeds in both fixed bytes and bytes per row."""
    found: list[tuple[float, float]] = []
    for row, fixed in sorted(moments.items(), reverse=True):
        if not found or fixed > found[-1][0]:
            found.append((float(fixed), float(row)))
    return tuple(found)


def _replace(model: nn.Module, fake: FakeTensorMode) -> None:
    """Replace meta tensors with fake CPU tensors; tied weights stay tied."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for held in tables:
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    with fake:
                        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
                held[name] = made[id(tensor)]


def longest_batch(config: Config, batch_size: int, lengths: Lengths, draw: Callable[[int], list[int]] = lambda count: [0] * count) -> Batch:
    """A batch of rows of equal lengths for the configured method, at a curriculum's longest stage (iCoT the first, Coconut the last).

    `draw(n)` returns n token ids.
    """
    rows = [
        EncodedExample(draw(lengths.question), [draw(lengths.cot - lengths.last_step), draw(lengths.last_step)], draw(lengths.answer), seed)
        for seed in range(batch_size)
    ]
    method, latent = METHODS[config.method], config.latent
    collator = Collator(
        method, 0, PROMPT_TOKENS, num_latents=latent.num_tokens,
        drop_last_step=config.dataset.drop_last_step, tokens_per_step=latent.tokens_per_step,
    )  # fmt: skip
    if method.curriculum == "replace_steps":
        collator.stage = -(-latent.num_tokens // latent.tokens_per_step)
    return collator.collate(rows)


def _bytes(tensors: Sequence[Tensor]) -> int:
    distinct = {id(tensor): tensor for tensor in tensors}
    return sum(tensor.numel() * tensor.element_size() for tensor in distinct.values())


@contextmanager
def _quiet_backward() -> Iterator[None]:
    """Suppress warnings: fake tensors are made for the compiler, and its warnings do not apply here."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
