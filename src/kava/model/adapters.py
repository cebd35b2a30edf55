"""LoRA in few operations: linear layers with the same input share one dropout and one matrix multiplication by A.

peft's own forward takes about ten operations per adapter and pass under autocast, most of them casts. Here the adapted layers of one
input (q, k and v of an attention module) are one autograd function, and weights are cast once per step:

    h = dropout(x) A^T,   y_i = x W_i^T + b_i + s_i h_i B_i^T        with A = [A_1; A_2; ..] and h = [h_1, h_2, ..]

The modules remain peft's, and so do checkpoints. Without dropout the outputs equal peft's up to rounding error. With dropout, all layers
of a group use the same dropout mask, while peft draws one per layer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim.optimizer import register_optimizer_step_post_hook

from kava.model.layer_kernels import adds_weight_gradients
from kava.model.linear_groups import group_by_input
from kava.model.lora import GradientSums, Lora
from kava.runtime.cpu_matmul import add_matmul_, linear, matmul


@dataclass(frozen=True)
class AdaptedLinear:
    """A peft LoRA module with one plain adapter on an `nn.Linear`."""

    module: Any
    adapter: str

    @property
    def frozen(self) -> tuple[Tensor, Tensor | None]:
        """W [out, in] and b [out]."""
        base = self.module.base_layer
        return base.weight, base.bias

    @property
    def trained(self) -> tuple[Tensor, Tensor]:
        """A [r, in] and B [out, r]."""
        return self.module.lora_A[self.adapter].weight, self.module.lora_B[self.adapter].weight

    @property
    def scaling(self) -> float:
        """s = alpha / r."""
        return float(self.module.scaling[self.adapter])

    @property
    def dropout(self) -> float:
        """Current dropout probability of the input; 0 in evaluation mode."""
        layer = self.module.lora_dropout[self.adapter]
        return float(getattr(layer, "p", 0.0)) if layer.training else 0.0

    @property
    def is_plain(self) -> bool:
        """Whether the adapter is active, neither merged nor disabled."""
        return not (self.module.disable_adapters or self.module.merged) and self.module.active_adapters == [self.adapter]


class AdapterGroup:
    """Adapted linear layers that read the same tensor. The first call computes the outputs of all.

    Args:
        members: in the order in which the model calls them.
    """

    def __init__(self, members: Sequence[AdaptedLinear]) -> None:
        self.members = tuple(members)
        self.casts: dict[tuple[torch.device, torch.dtype], _Casts] = {}
        # Made for the first training step, and used within `Adapters.sum_gradients`.
        self.sums: GradientSums | None = None
        self.sums_gradients = False
        self._input: Tensor | None = None
        self._outputs: list[Tensor | None] = []

    def call(self, index: int, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """The output of member `index`, [.., in] -> [.., out]."""
        member = self.members[index]
        if not member.is_plain or arguments or options or torch.compiler.is_compiling():
            plain: Tensor = LoraLinear.forward(member.module, x, *arguments, **options)
            return plain
        if self._input is not x or self._outputs[index] is None:
            self._input, self._outputs = x, list(self._compute(x))
        output, self._outputs[index] = self._outputs[index], None
        if all(kept is None for kept in self._outputs):
            self._input = None
        assert output is not None
        return output

    def forget(self) -> None:
        """Drop outputs that were computed and not asked for."""
        self._input, self._outputs = None, []

    def _compute(self, x: Tensor) -> tuple[Tensor, ...]:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.members[0].frozen[0].dtype
        with torch.autocast(device, enabled=False):
            outputs: tuple[Tensor, ...] = _Adapt.apply(  # type: ignore[no-untyped-call]
                x.to(dtype), self.lora(x.device, dtype), [member.frozen for member in self.members], *self.trained()
            )
        return outputs

    def trained(self) -> list[Tensor]:
        """A and B of each member, one member after the other."""
        return [part for member in self.members for part in member.trained]

    def lora(self, device: torch.device, dtype: torch.dtype) -> Lora:
        """What a call needs besides frozen weights, with the trained weights cast to `dtype`."""
        if (device, dtype) not in self.casts:
            # Casts on another device are no longer needed; casts to another dtype may be used by a CUDA graph.
            self.casts = {key: casts for key, casts in self.casts.items() if key[0] == device}
            with torch.inference_mode(False):
                self.casts[device, dtype] = _Casts(self.members, dtype)
        casts = self.casts[device, dtype]
        scales = tuple(member.scaling for member in self.members)
        sums = self.sums if self.sums_gradients and adds_weight_gradients(device, dtype) else None
        return Lora((casts.down, *casts.ups), scales, self.members[0].dropout, casts.sources[0].dtype, sums)


class _Casts:
    """Copies of a group's trained weights in the compute dtype: all A in one matrix, each B separate."""

    def __init__(self, members: Sequence[AdaptedLinear], dtype: torch.dtype) -> None:
        downs, ups = zip(*(member.trained for member in members), strict=True)
        self.sources = [*downs, *ups]
        self.ranks = [len(down) for down in downs]
        self.down = torch.cat([down.detach() for down in downs]).to(dtype)
        self.ups = [up.detach().to(dtype, copy=True) for up in ups]
        self.copies = [*self.down.split(self.ranks), *self.ups]
        self.seen = self.stamp()

    def stamp(self) -> list[int]:
        """A value that changes when the trained weights are written to or replaced."""
        return [_optimizer_steps, *(number for source in self.sources for number in (source._version, source.data_ptr()))]


# Fused optimizers write to weights without incrementing their version counter.
_optimizer_steps = 0


def _count_step(*_: Any) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


register_optimizer_step_post_hook(_count_step)


class _Adapt(torch.autograd.Function):
    """The outputs of a group from its input, `AdaptedLinear.frozen` of each member, and `AdapterGroup.trained`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lora: Lora, frozen: Sequence[tuple[Tensor, Tensor | None]], *_: Tensor) -> tuple[Tensor, ...]:
        rows = x.reshape(-1, x.shape[-1])
        outputs = [linear(rows, weight.to(x.dtype), None if bias is None else bias.to(x.dtype)) for weight, bias in frozen]
        ctx.save_for_backward(*lora.add(rows, outputs), *(weight for weight, _ in frozen), *lora.tensors)
        ctx.lora = lora.with_tensors(())
        return tuple(output.view(*x.shape[:-1], -1) for output in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        dropped, mask, hidden, *rest = ctx.saved_tensors
        members = len(gradients)
        weights, lora = rest[:members], ctx.lora.with_tensors(rest[members:])
        rows = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
        to_hidden, trained = lora.gradients(rows, dropped, hidden)
        to_input = None
        if ctx.needs_input_grad[0]:
            through = matmul(rows[0], weights[0].to(rows[0].dtype))
            for row, weight in zip(rows[1:], weights[1:], strict=True):
                add_matmul_(through, row, weight.to(row.dtype))
            to_input, to_dropped = lora.to_input(through, to_hidden, dropped=mask is not None)
            if to_dropped is not None:
                to_input += torch.ops.aten.native_dropout_backward(to_dropped, mask, lora.keep)
            to_input = to_input.view(*gradients[0].shape[:-1], -1)
        return to_input, None, None, *trained


def _plain_adapter(module: Any) -> str | None:
    """The name of a module's only adapter; None if it is not plain LoRA on an `nn.Linear`."""
    names = list(module.lora_A)
    plain = (
        type(module.base_layer) is nn.Linear
        and len(names) == 1
        and not getattr(module, "lora_variant", None)
        and not getattr(module, "use_dora", {}).get(names[0], False)
        and module.lora_A[names[0]].bias is None
        and module.lora_B[names[0]].bias is None
        and not module.fan_in_fan_out
    )
    return names[0] if plain else None


class Adapters:
    """All adapter groups of a model.

    Args:
        groups: as `share_inputs` forms them.
    """

    def __init__(self, groups: Sequence[AdapterGroup]) -> None:
        self.groups = tuple(groups)

    def refresh(self) -> None:
        """Cast the current trained weights again, in one `_foreach_copy_` call."""
        casts = self._casts()
        if casts:
            with torch.no_grad():
                torch._foreach_copy_([copy for one in casts for copy in one.copies], [source for one in casts for source in one.sources])
        for one in casts:
            one.seen = one.stamp()

    def refresh_if_changed(self) -> None:
        """Call `refresh` if the weights have changed since the last cast. The check does not synchronize with the device."""
        if any(one.seen != one.stamp() for one in self._casts()):
            self.refresh()

    @contextmanager
    def sum_gradients(self) -> Iterator[None]:
        """Let backward passes of what is computed inside the block add the gradients of A and B to `.grad` (see `GradientSums`)."""
        for group in self.groups:
            if group.sums is None:
                group.sums = GradientSums(*zip(*(member.trained for member in group.members), strict=True))
            group.sums.allocate()
            group.sums_gradients = True
        try:
            yield
        finally:
            for group in self.groups:
                group.sums_gradients = False

    def forget_inputs(self) -> None:
        """Drop what a pass that failed half-way left: outputs that hold its whole graph."""
        for group in self.groups:
            group.forget()

    def restore_forwards(self) -> None:
        """Restore peft's own forward in every module."""
        for group in self.groups:
            for member in group.members:
                del member.module.forward
        self.groups = ()

    def _casts(self) -> list[_Casts]:
        return [casts for group in self.groups for casts in group.casts.values()]


def share_inputs(model: nn.Module, probe: Any) -> Adapters:
    """Group the plain adapters of a model by the tensor that they read, and let the groups compute them.

    Args:
        model: with peft's LoRA modules in place.
        probe: runs the model on a few tokens, to find which modules read the same tensor.
    """
    adapted = {module: name for module in model.modules() if isinstance(module, LoraLinear) and (name := _plain_adapter(module))}
    groups = [[AdaptedLinear(module, adapted[module]) for module in readers] for readers in group_by_input(adapted, probe)]
    found = [AdapterGroup(members) for members in groups]
    for group in found:
        for index, member in enumerate(group.members):
            member.module.forward = partial(group.call, index)
    return Adapters(found)
