"""Linear layers on a CPU in few operations: layers with the same input are one matrix multiplication, forward and backward.

    y = x [W_1; W_2; ..]^T + [b_1, b_2, ..]

The modules stay in place and keep their weights. On other devices, in dtypes other than float32, and for few rows (decoding one token),
each layer runs its own forward.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kava.runtime import cpu_matmul
from kava.runtime.cpu_matmul import linear, matmul, transposed_matmul

Module = TypeVar("Module", bound=nn.Module)


class LinearGroup:
    """Linear layers that read the same tensor. The first call computes the outputs of all.

    Args:
        members: in the order in which the model calls them; either all or none have a bias.
    """

    def __init__(self, members: Sequence[nn.Linear]) -> None:
        self.members = tuple(members)
        # Summed over the group, so that all members make the same choice: the first to run computes the outputs of the others.
        self._out_features = sum(one.out_features for one in members)
        self._input: Tensor | None = None
        self._outputs: list[Tensor | None] = []

    def call(self, index: int, x: Tensor) -> Tensor:
        """The output of member `index`, [.., in] -> [.., out]."""
        member = self.members[index]
        if not _takes(x, member, self._out_features):
            return nn.Linear.forward(member, x)
        if self._input is not x or self._outputs[index] is None:
            weights, biases = zip(*((one.weight, one.bias) for one in self.members), strict=True)
            made = _Maps.apply(x, len(weights), *weights, *biases)  # type: ignore[no-untyped-call]
            self._input, self._outputs = x, list(made)
        output, self._outputs[index] = self._outputs[index], None
        if all(kept is None for kept in self._outputs):
            self._input = None
        assert output is not None
        return output


def _takes(x: Tensor, member: nn.Linear, out_features: int) -> bool:
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == member.weight.dtype == torch.float32
        and x.numel() * out_features >= cpu_matmul.MIN_MULTIPLICATIONS
        and not torch.is_autocast_enabled("cpu")
    )


class _Maps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int, *parts: Tensor | None) -> tuple[Tensor, ...]:
        weights, biases = [part for part in parts[:count] if part is not None], parts[count:]
        rows, weight = x.reshape(-1, x.shape[-1]), _joined(weights)
        outputs = linear(rows, weight, _joined([bias for bias in biases if bias is not None]) if biases[0] is not None else None)
        ctx.save_for_backward(rows, *weights)
        ctx.shape, ctx.count, ctx.sizes = x.shape, count, [len(one) for one in weights]
        # Not views to autograd, so that callers may modify the outputs in place.
        outputs = torch.ops.aten._unsafe_view(outputs, [*x.shape[:-1], outputs.shape[-1]])
        return (outputs,) if count == 1 else torch.unsafe_split_with_sizes(outputs, ctx.sizes, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        rows, *weights = ctx.saved_tensors
        count, needed = ctx.count, ctx.needs_input_grad
        gradient = (gradients[0] if count == 1 else torch.cat(gradients, -1)).reshape(len(rows), -1)
        to_input = matmul(gradient, _joined(weights)).view(ctx.shape) if needed[0] else None
        to_weights: Sequence[Tensor | None] = [None] * count
        if any(needed[2 : 2 + count]):
            to_weights = transposed_matmul(gradient, rows).split(ctx.sizes)
        to_biases: Sequence[Tensor | None] = [None] * count
        if any(needed[2 + count :]):
            to_biases = gradient.sum(0).split(ctx.sizes)
        return to_input, None, *to_weights, *to_biases


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))


def group_by_input(modules: Iterable[Module], probe: Callable[[], Any]) -> list[list[Module]]:
    """Groups of modules that read the same tensor in consecutive calls, in the order in which `probe` first calls them.

    Args:
        modules: they take their input as the first argument; those that the probe does not call are in no group.
        probe: runs the model on a few tokens.
    """
    waiting = set(modules)
    calls: list[tuple[Module, Tensor]] = []
    hooks = [module.register_forward_pre_hook(lambda module, inputs: calls.append((module, inputs[0]))) for module in waiting]
    try:
        probe()
    finally:
        for hook in hooks:
            hook.remove()
    groups: list[list[Module]] = []
    previous: Tensor | None = None
    for module, tensor in calls:
        if module not in waiting:
            continue
        waiting.remove(module)
        if tensor is previous:
            groups[-1].append(module)
        else:
            groups.append([module])
        previous = tensor
    return groups


def group_linears(model: nn.Module, probe: Any) -> tuple[LinearGroup, ...]:
    """Group the plain linear layers of a model by the tensor that they read, and let the groups compute them on a CPU.

    A layer that the probe does not call is a group of its own.

    Args:
        model: its adapters, if any, are in place and in their own groups.
        probe: runs the model on a few tokens, to find which layers read the same tensor.
    """
    plain = [module for module in model.modules() if type(module) is nn.Linear and "forward" not in vars(module)]
    alike = (groupby(readers, lambda module: module.bias is None) for readers in group_by_input(plain, probe))
    groups = [list(members) for group in alike for _, members in group]
    reached = {module for members in groups for module in members}
    found = tuple(LinearGroup(members) for members in [*groups, *([module] for module in plain if module not in reached)])
    for group in found:
        for index, member in enumerate(group.members):
            member.forward = partial(group.call, index)  # type: ignore[method-assign]
    return found
