"""A frozen Llama-style decoder layer with LoRA on its attention as two autograd functions, before and behind (after) the attention.

    before:  q, k, v = rotate(adapt(rms_norm(x)))
    behind:  h = x + adapt(mixed),   y = h + (silu(n W_gate^T) * n W_up^T) W_down^T   with n = rms_norm(h)

Additions to the residual stream are part of a kernel or a matrix multiplication, and so are those of gradients around a norm. Frozen
weights have no gradients, so that little is kept for the backward pass; those that read the same rows are one matrix. Attention, cache
and modules are unchanged.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kava.cache.attention import PREFIX
from kava.cache.layers import to_dynamic_cache
from kava.errors import reason_of
from kava.model import layer_kernels as kernels
from kava.model.adapters import AdapterGroup
from kava.model.backbone import Backbone
from kava.model.fused_layer import is_llama_style
from kava.model.lora import Lora
from kava.runtime.cpu_matmul import linear, matmul

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def fuse_adapted_layers(backbone: Backbone, check: bool = True) -> "list[AdaptedLayer]":
    """Compute decoder layers in few operations. Call with adapters in place.

    Args:
        backbone: the language model.
        check: compare each fused layer with the model's own, for which weights need values.

    Returns:
        The fused layers: all, or none if the architecture does not fit or a fused layer differs from the model's own.
    """
    layers = list(getattr(backbone.decoder, "layers", []))
    groups = {group.members[0].module: group for group in backbone.adapters.groups}
    if (backbone.special_ids.is_cuda and not kernels.HAS_TRITON) or not layers or not all(map(_fits, layers)):
        return []
    pairs = [(groups.get(layer.self_attn.q_proj), groups.get(layer.self_attn.o_proj)) for layer in layers]
    if not all(first and last and len(first.members) == 3 and len(last.members) == 1 for first, last in pairs):
        return []
    if not all(_is_frozen(layer, pair) for layer, pair in zip(layers, pairs, strict=True)):
        return []
    fused = [AdaptedLayer(layer, *pair) for layer, pair in zip(layers, pairs, strict=True)]
    for one in fused:
        one.layer.forward = one
    if check and not _agree(backbone, fused):
        for one in fused:
            del one.layer.forward
        return []
    return fused


def _fits(layer: Any) -> bool:
    """Whether a layer has the parts of Llama's with adapters on its attention, and sizes that the kernels can take."""
    # A layer whose forward has been replaced is computed again in the backward pass, or fused already.
    if not is_llama_style(layer, LoraLinear) or "forward" in vars(layer):
        return False
    width = layer.self_attn.head_dim
    # The halves of a head are powers of two, and a dropout mask is whole bytes.
    return width & (width - 1) == 0 and layer.self_attn.o_proj.in_features % 8 == layer.self_attn.q_proj.in_features % 8 == 0


def _is_frozen(layer: Any, groups: Sequence[Any]) -> bool:
    """Whether only the adapters of a layer are trained."""
    adapted = {id(part) for group in groups for part in group.trained()}
    return not any(parameter.requires_grad for parameter in layer.parameters() if id(parameter) not in adapted)


class _Stacked:
    """A frozen parameter of several maps, below each other in one tensor, of which each is a part, so that none is stored twice."""

    def __init__(self, maps: Sequence[Any], name: str) -> None:
        self.maps, self.name = maps, name
        self._whole = torch.empty(0)
        self.get()

    def get(self) -> Tensor:
        """The parameters as they are now: also after they were moved to another device or dtype, or replaced."""
        parts: list[Tensor] = [getattr(one, self.name) for one in self.maps]
        storage = self._whole.untyped_storage()._cdata
        if any(part.untyped_storage()._cdata != storage for part in parts):
            # Tensors created in inference mode could not be saved for a backward pass.
            with torch.inference_mode(False), torch.no_grad():
                self._whole = torch.cat([part.detach() for part in parts])
                for part, place in zip(parts, self._whole.split([len(part) for part in parts]), strict=True):
                    part.data = place
        return self._whole


class AdaptedLayer:
    """A fused forward pass of a decoder layer; unsupported inputs go to the layer's own forward.

    Args:
        layer: one that passes `is_llama_style`.
        before: the group of its query, key and value projections.
        behind: the group of its output projection.
    """

    def __init__(self, layer: Any, before: Any, behind: Any) -> None:
        self.layer, self.plain = layer, layer.forward
        self.before: AdapterGroup = before
        self.behind: AdapterGroup = behind
        maps = [member.module.base_layer for member in self.before.members]
        self.of_attention = _Stacked(maps, "weight")
        self.of_biases = _Stacked(maps, "bias") if maps[0].bias is not None else None
        self.of_mlp = _Stacked([layer.mlp.gate_proj, layer.mlp.up_proj], "weight")
        # Set for the comparison with the layer's own pass: the largest relative difference seen.
        self.difference: float | None = None

    def __call__(self, hidden_states: Tensor, *arguments: Any, **options: Any) -> Any:
        """Same arguments and result as `layer.forward`."""
        cache, positions = options.get("past_key_values"), options.get("position_embeddings")
        if arguments or cache is None or positions is None or not self._takes(hidden_states):
            return self.plain(hidden_states, *arguments, **options)
        if self.difference is not None:
            self.difference = self._compare(hidden_states, options)
            return self.plain(hidden_states, **options)
        with torch.autocast(hidden_states.device.type, enabled=False):
            return self._compute(hidden_states, cache, positions, options.get("attention_mask"))

    def _compare(self, x: Tensor, options: dict[str, Any]) -> float:
        """The largest relative difference from the layer's own pass, of what is added to x and of the gradient."""

        def plain(inputs: Tensor) -> Any:
            return self.plain(inputs, **options | {"past_key_values": to_dynamic_cache(())})

        def fused(inputs: Tensor) -> Tensor:
            return self._compute(inputs, to_dynamic_cache(()), options["position_embeddings"], options.get("attention_mask"))

        found: list[tuple[Tensor, Tensor]] = []
        for forward in (plain, fused):
            inputs = x.detach().requires_grad_()
            with torch.enable_grad():
                torch.manual_seed(0)
                output = forward(inputs)
                (gradient,) = torch.autograd.grad(output.float().square().sum(), inputs)
            found.append((output.detach() - x, gradient))
        (expected, to_x), (added, gradient) = found
        pairs = ((added, expected), (gradient, to_x))
        return float(torch.stack([(one - other).abs().max() / other.abs().max() for one, other in pairs]).max())

    def _compute(self, x: Tensor, cache: Any, positions: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        attention, norm, behind = self.layer.self_attn, self.layer.input_layernorm, self.layer.post_attention_layernorm
        query, key, value, residual = _Before.apply(  # type: ignore[no-untyped-call]
            x, norm.weight, norm.variance_epsilon, *positions, self.of_attention.get(), self.of_biases and self.of_biases.get(),
            self.before.lora(x.device, x.dtype), *self.before.trained(),
        )  # fmt: skip
        key, value = cache.update(key, value, attention.layer_idx)
        mixed, _ = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation](
            attention, query, key, value, mask,
            dropout=attention.attention_dropout if attention.training else 0.0, scaling=attention.scaling,
        )  # fmt: skip
        output: Tensor = _Behind.apply(  # type: ignore[no-untyped-call]
            residual, mixed, behind.weight, behind.variance_epsilon, self.behind.members[0].frozen[0], self.of_mlp.get(),
            self.layer.mlp.down_proj.weight, self.behind.lora(x.device, x.dtype), *self.behind.trained(),
        )  # fmt: skip
        return output

    def _takes(self, x: Tensor) -> bool:
        """Whether the fused pass supports x: in the dtype of weights and autocast, with SDPA, adapters neither merged nor disabled."""
        device = x.device.type
        computed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return (
            not torch.compiler.is_compiling()
            and x.dtype == computed == self.layer.mlp.down_proj.weight.dtype == self.layer.input_layernorm.weight.dtype
            and self.layer.self_attn.config._attn_implementation == PREFIX + "sdpa"
            and all(member.is_plain for group in (self.before, self.behind) for member in group.members)
        )


def _agree(backbone: Backbone, fused: Sequence[AdaptedLayer]) -> bool:
    """Whether each fused layer gives what its own forward gives, for a few tokens, with dropout and in the backward pass."""
    ids = torch.arange(4, device=backbone.special_ids.device)[None]
    for one in fused:
        one.difference = torch.inf
    passes, training = backbone.forward_passes, backbone.training
    backbone.train()
    try:
        with torch.no_grad(), torch.random.fork_rng([ids.device] if ids.is_cuda else []):
            backbone.read(ids, torch.ones_like(ids, dtype=torch.bool))
    except Exception as error:  # Triton needs a C compiler, and a card that it knows
        reason = f"{type(error).__name__}: {reason_of(error)}"
        cure = "training is slower, its results are the same; mend that, or set system.fused_kernels to false"
        print(f"kava: layers are not fused, because their kernels do not run here ({reason}): {cure}", file=sys.stderr, flush=True)
        return False
    finally:
        backbone.forward_passes = passes
        backbone.train(training)
    tolerance = _TOLERANCE[backbone.causal_lm.dtype]
    # Also false for a difference that is not a number.
    agreed = all(one.difference is not None and one.difference <= tolerance for one in fused)
    for one in fused:
        one.difference = None
    return agreed


class _Before(torch.autograd.Function):
    """Map x [B, n, E] to rotated queries and keys and to values, each [B, heads, n, D], and to x itself for the residual connection."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, epsilon: float, cos: Tensor, sin: Tensor, weight: Tensor, bias: Tensor | None,
        lora: Lora, *trained: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        rows, width = x.reshape(-1, x.shape[-1]), cos.shape[-1]
        normal, scale = kernels.norm(rows, gain, epsilon)
        made = linear(normal, weight, bias)
        widths = [len(up) for up in lora.ups]
        kept = lora.add(normal, made.split(widths, 1))
        ctx.save_for_backward(rows, scale, gain, cos, sin, weight, *_packed(kept), *lora.tensors)
        ctx.lora, ctx.widths = lora.with_tensors(()), widths
        return *kernels.rotate(made, cos, sin, (x.shape[0], x.shape[1]), (widths[0] // width, widths[1] // width)), x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_query: Tensor, to_key: Tensor, to_value: Tensor, residual: Tensor) -> tuple[Any, ...]:
        x, scale, gain, cos, sin, weight, dropped, bits, hidden, *rest = ctx.saved_tensors
        lora = ctx.lora.with_tensors(rest)
        rows = kernels.rotate_back(to_query, to_key, to_value, cos, sin)
        to_hidden, trained = lora.gradients(rows.split(ctx.widths, 1), dropped, hidden)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_normal, to_dropped = lora.to_input(matmul(rows, weight), to_hidden, dropped=bits is not None)
            to_x = kernels.norm_backward(to_normal, x, scale, gain, residual.reshape(x.shape), to_dropped, bits, lora.keep).view(
                residual.shape
            )
        return to_x, None, None, None, None, None, None, None, *trained


class _Behind(torch.autograd.Function):
    """Map x [B, n, E] and the attention output, [B, n, Nh, D], to the layer's output."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mixed: Tensor, gain: Tensor, epsilon: float, out: Tensor, gate_and_up: Tensor, down: Tensor,
        lora: Lora, *trained: Tensor,
    ) -> Tensor:  # fmt: skip
        rows = x.reshape(-1, x.shape[-1])
        of_heads = mixed.reshape(len(rows), -1)
        attended = linear(of_heads, out, None)
        kept = lora.add(of_heads, [attended])
        middle, normal, scale = kernels.add_norm(rows, attended, gain, epsilon)
        both = linear(normal, gate_and_up, None)
        output = torch.addmm(middle, kernels.gated(both), down.T)
        ctx.save_for_backward(middle, scale, gain, both, out, gate_and_up, down, *_packed(kept), *lora.tensors)
        ctx.lora, ctx.shape = lora.with_tensors(()), mixed.shape
        # Not a view to autograd, so that callers may modify the output in place.
        return torch.ops.aten._unsafe_view(output, x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        middle, scale, gain, both, out, gate_and_up, down, dropped, bits, hidden, *rest = ctx.saved_tensors
        lora = ctx.lora.with_tensors(rest)
        rows = gradient.reshape(-1, gradient.shape[-1])
        to_both = kernels.gated_backward(matmul(rows, down), both)
        to_middle = kernels.norm_backward(matmul(to_both, gate_and_up), middle, scale, gain, rows)
        to_hidden, trained = lora.gradients([to_middle], dropped, hidden)
        to_mixed = None
        if ctx.needs_input_grad[1]:
            through, to_dropped = lora.to_input(matmul(to_middle, out), to_hidden, dropped=bits is not None)
            to_mixed = kernels.to_heads(through, to_dropped, bits, lora.keep, ctx.shape)
        return to_middle.view(gradient.shape), to_mixed, None, None, None, None, None, None, *trained


def _packed(kept: tuple[Tensor, Tensor | None, Tensor]) -> tuple[Tensor, Tensor | None, Tensor]:
    """What `Lora.add` keeps, with the dropout mask in bits."""
    dropped, mask, hidden = kept
    return dropped, None if mask is None else kernels.pack(mask), hidden
