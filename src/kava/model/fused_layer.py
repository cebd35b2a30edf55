"""A Llama-style decoder layer on a CPU as two autograd functions, before and behind (after) its attention.

    before:  q, k, v = rotate(rms_norm(x) [W_q; W_k; W_v]^T + b)
    behind:  h = x + mixed W_o^T,   y = h + (silu(n W_gate^T) * n W_up^T) W_down^T   with n = rms_norm(h)

A small model's layer spends more time between its matrix multiplications than in them. The gain of a norm is multiplied into the weights
after it, which are smaller than the activations, and its gradient follows from theirs. Attention, cache and modules are unchanged.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import SiLUActivation
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kava.cache.attention import PREFIX
from kava.runtime.cpu_matmul import linear, matmul, transposed_matmul

_LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


class FusedLayer:
    """A fused forward pass of a decoder layer; unsupported inputs go to the layer's own forward.

    Args:
        layer: one that passes `is_llama_style`.
    """

    def __init__(self, layer: Any) -> None:
        self.layer, self.plain = layer, layer.forward
        # Set for the comparison with the layer's own pass: fuse even for few rows.
        self.always = False

    def __call__(self, hidden_states: Tensor, *arguments: Any, **options: Any) -> Any:
        """Same arguments and result as `layer.forward`."""
        cache, positions = options.get("past_key_values"), options.get("position_embeddings")
        if arguments or cache is None or positions is None or not self._takes(hidden_states):
            return self.plain(hidden_states, *arguments, **options)
        attention, mlp = self.layer.self_attn, self.layer.mlp
        maps = (attention.q_proj, attention.k_proj, attention.v_proj)
        norm, behind = self.layer.input_layernorm, self.layer.post_attention_layernorm
        query, key, value = _Before.apply(  # type: ignore[no-untyped-call]
            hidden_states, norm.weight, norm.variance_epsilon, *positions, attention.head_dim,
            *(one.weight for one in maps), *(one.bias for one in maps),
        )  # fmt: skip
        key, value = cache.update(key, value, attention.layer_idx)
        mixed, _ = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation](
            attention, query, key, value, options.get("attention_mask"),
            dropout=attention.attention_dropout if attention.training else 0.0, scaling=attention.scaling,
        )  # fmt: skip
        return _Behind.apply(  # type: ignore[no-untyped-call]
            hidden_states, mixed, behind.weight, behind.variance_epsilon,
            attention.o_proj.weight, mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight,
        )  # fmt: skip

    def _takes(self, x: Tensor) -> bool:
        """Whether the fused pass supports x: on a CPU, in float32, and at least E rows (tokens)."""
        width = x.shape[-1]
        return (
            not torch.compiler.is_compiling()
            and type(x) in (Tensor, nn.Parameter)
            and x.device.type == "cpu"
            # Eager attention is used to read attention weights with a hook on the module, which the fused pass bypasses.
            and self.layer.self_attn.config._attn_implementation == PREFIX + "sdpa"
            and x.dtype == self.layer.mlp.down_proj.weight.dtype == torch.float32
            and (self.always or x.numel() >= width * width)
            and not torch.is_autocast_enabled("cpu")
        )


def is_llama_style(layer: Any, projection: type[nn.Module] = nn.Linear) -> bool:
    """Whether a layer has exactly the submodules of Llama's, with attention projections of this type.

    How it uses them is checked by running it (`kava.model.cpu_kernels`, `kava.model.adapted_layer`).
    """
    if {name for name, _ in layer.named_children()} != _LAYER:
        return False
    attention, mlp = layer.self_attn, layer.mlp
    if {name for name, _ in attention.named_children()} != _ATTENTION or {name for name, _ in mlp.named_children()} != _MLP:
        return False
    projections = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    if not all(type(one) is projection for one in projections):
        return False
    maps = [*(getattr(one, "base_layer", one) for one in projections), mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    return (
        all(type(one) is nn.Linear for one in maps)
        and all(one.bias is None for one in maps[3:])
        and len({one.bias is None for one in maps[:3]}) == 1
        and isinstance(mlp.act_fn, nn.SiLU | SiLUActivation)
        and all(hasattr(norm, "variance_epsilon") and [name for name, _ in norm.named_parameters()] == ["weight"] for norm in norms)
        and all(hasattr(attention, name) for name in ("head_dim", "scaling", "attention_dropout", "layer_idx", "config"))
        # Another dropout would not show in the comparison, which runs in evaluation mode.
        and not any(
            name.endswith("dropout") and value
            for part in (layer, attention, mlp)
            for name, value in vars(part).items()
            if name != "attention_dropout"
        )
    )


class _Before(torch.autograd.Function):
    """Map x [B, n, E] to rotated queries, rotated keys, and values, each [B, heads, n, D]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, epsilon: float, cos: Tensor, sin: Tensor, width: int, *parts: Tensor | None
    ) -> tuple[Tensor, ...]:
        weight, biases = torch.cat([part for part in parts[:3] if part is not None]), [part for part in parts[3:] if part is not None]
        normal, scale = _normalised(x.reshape(-1, x.shape[-1]), epsilon)
        cos, sin = cos[:, None], sin[:, None]
        ctx.rows = [len(part) for part in parts[:3] if part is not None]
        ctx.heads = [rows // width for rows in ctx.rows]
        ctx.save_for_backward(normal, scale, weight, gain, cos, sin)
        made = linear(normal, weight * gain, torch.cat(biases) if biases else None).view(*x.shape[:2], -1, width).transpose(1, 2)
        query, key, value = torch.unsafe_split_with_sizes(made, ctx.heads, 1)
        return _rotated(query, cos, sin), _rotated(key, cos, sin), value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_query: Tensor, to_key: Tensor, to_value: Tensor) -> tuple[Any, ...]:
        normal, scale, weight, gain, cos, sin = ctx.saved_tensors
        batch, _, count, width = to_query.shape
        gradient = to_query.new_empty(batch, count, sum(ctx.heads), width)
        query, key, value = gradient.transpose(1, 2).split(ctx.heads, 1)
        # The gradient of the rotation: the halves of `sin` swap places and change sign.
        back = -torch.cat(sin.chunk(2, -1)[::-1], -1)
        _rotated(to_query, cos, back, query)
        _rotated(to_key, cos, back, key)
        value.copy_(to_value)
        gradient = gradient.view(len(normal), -1)
        to_gain, to_weight = _to_gain_and_weight(transposed_matmul(gradient, normal), gain, weight)
        to_x = _norm_backward_(matmul(gradient, weight * gain), normal, scale).view(batch, count, -1)
        to_biases: Sequence[Tensor | None] = gradient.sum(0).split(ctx.rows) if any(ctx.needs_input_grad[9:]) else [None] * 3
        return to_x, to_gain, None, None, None, None, *to_weight.split(ctx.rows), *to_biases


class _Behind(torch.autograd.Function):
    """Map x [B, n, E] and the attention output, [B, n, Nh, D] or [B, n, Nh D], to the layer's output."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mixed: Tensor, gain: Tensor, epsilon: float, out: Tensor, gate: Tensor, up: Tensor, down: Tensor
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        attended = mixed.reshape(len(rows), -1)
        middle = linear(attended, out, None).add_(rows)
        normal, scale = _normalised(middle, epsilon)
        weight = torch.cat([gate, up])
        both = linear(normal, weight * gain, None)
        opening, raised = both.chunk(2, -1)
        opened = nn.functional.silu(opening)
        active = opened * raised
        ctx.save_for_backward(attended, normal, scale, both, opened, active, weight, gain, out, down)
        ctx.shape = mixed.shape
        # Not a view to autograd, so that callers may modify the output in place.
        return torch.ops.aten._unsafe_view(linear(active, down, None).add_(middle), x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        attended, normal, scale, both, opened, active, weight, gain, out, down = ctx.saved_tensors
        shape, gradient = gradient.shape, gradient.reshape(-1, gradient.shape[-1])
        to_down = transposed_matmul(gradient, active)
        to_active = matmul(gradient, down)
        opening, raised = both.chunk(2, -1)
        to_both = torch.empty_like(both)
        to_opening, to_raised = to_both.chunk(2, -1)
        torch.mul(to_active, opened, out=to_raised)
        torch.ops.aten.silu_backward.grad_input(to_active.mul_(raised), opening, grad_input=to_opening)
        to_gain, to_weight = _to_gain_and_weight(transposed_matmul(to_both, normal), gain, weight)
        to_middle = _norm_backward_(matmul(to_both, weight * gain), normal, scale).add_(gradient)
        to_mixed = matmul(to_middle, out).view(ctx.shape)
        return to_middle.view(shape), to_mixed, to_gain, None, transposed_matmul(to_middle, attended), *to_weight.chunk(2), to_down


def _normalised(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Rows divided by their root mean square, and the inverse of that root mean square."""
    scale = x.pow(2).mean(-1, keepdim=True).add_(epsilon).rsqrt_()
    return x * scale, scale


def _norm_backward_(gradient: Tensor, normal: Tensor, scale: Tensor) -> Tensor:
    """The gradient of the rows, computed in place from the gradient of the normalised rows."""
    along = (gradient * normal).mean(-1, keepdim=True)
    return gradient.addcmul_(normal, along, value=-1).mul_(scale)


def _to_gain_and_weight(to_folded: Tensor, gain: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gain and weight from the gradient of weight * gain, which is overwritten."""
    return (to_folded * weight).sum(0), to_folded.mul_(gain)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    """x cos + [-x_2, x_1] sin, with x_1 and x_2 the halves of x."""
    out = torch.mul(x, cos, out=x.new_empty(x.shape) if out is None else out)
    half = x.shape[-1] // 2
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out
