"""One model over several processes (`system.fsdp`): each keeps a shard of every weight, and a layer is only gathered while it computes.

This uses PyTorch's `fully_shard` (FSDP2), with two additions that the method needs. The decoder layers run several times per step, and
gradients also reach them through their keys and values, before their output has a gradient or without one: a hook then gathers the
layer's weights. And validation runs the model outside a training step, where all processes must run the same passes together.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from transformers import Cache

from kava.errors import UserError
from kava.model.kava import KavaModel
from kava.runtime.processes import world_size

Result = TypeVar("Result")


def shard(model: KavaModel, device: torch.device) -> None:
    """Shard every weight over the processes of the run, layer by layer. The process group must be open.

    Raises:
        UserError: the decoder layers cannot be identified.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # A weight is only gathered in its own module's forward pass, which adapter groups bypass.
    model.backbone.adapters.restore_forwards()
    mesh = init_device_mesh(device.type, (world_size(),))
    for layer, index in _layers(model):
        fully_shard(layer, mesh=mesh)
        layer.register_forward_hook(_gathering(index), with_kwargs=True)
    if any(True for _ in model.projection.parameters()):
        # A group of its own: one group has one dtype, and a base in bfloat16 has another.
        fully_shard(model.projection, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "call")
    model.is_sharded = True


def run_on_all_ranks(model: KavaModel, run: Callable[[], Result]) -> Result:
    """Run forward passes outside a training step; all processes call this and must run the same passes."""
    result: Result = model.call(run)
    cast(Any, model).reshard()
    return result


def gather_full_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered in full, on the CPU; any other tensor as it is. All processes call this."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def gather_full_weights(model: KavaModel) -> dict[str, Tensor]:
    """Full weights of a sharded model that a checkpoint stores, by the model's own names; all processes call this."""
    from peft import PeftModel

    parameters = dict(model.named_parameters(remove_duplicate=False))
    # The base weights of an adapter are not saved, so they are not gathered.
    adapter = isinstance(model.backbone.model, PeftModel)
    state = model.state_dict()
    names = [name for name in state if not adapter or (name in parameters and parameters[name].requires_grad)]
    # Tied weights stay one tensor, or they would be saved twice.
    gathered: dict[int, Tensor] = {}
    weights = {}
    for name in names:
        held = parameters.get(name, state[name])
        if id(held) not in gathered:
            gathered[id(held)] = gather_full_tensor(held.detach())
        weights[name] = gathered[id(held)]
    return weights


def make_portable(optimizer: torch.optim.Optimizer) -> None:
    """Make an optimizer save and load its full state, whatever the number of processes."""

    def gather(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        return state | {
            "state": {key: {name: gather_full_tensor(value) for name, value in own.items()} for key, own in state["state"].items()}
        }

    def scatter(loading: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        # Before the optimizer moves them to its device, one tensor after the other, so that no GPU holds all of them in full.
        own = [parameter for group in loading.param_groups for parameter in group["params"]]
        keys = [key for group in state["param_groups"] for key in group["params"]]
        parameters = dict(zip(keys, own, strict=False))
        return state | {
            "state": {
                key: {name: _as_sharded(value, parameters.get(key)) for name, value in held.items()} for key, held in state["state"].items()
            }
        }

    optimizer.register_state_dict_post_hook(gather)
    optimizer.register_load_state_dict_pre_hook(scatter)


def _as_sharded(value: Any, parameter: Tensor | None) -> Any:
    """This process's part of a full tensor, if the parameter of its shape is sharded; any other value as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
        # Every process has read the same file, so nothing is sent.
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value


def _layers(model: KavaModel) -> list[tuple[Any, int]]:
    """The decoder layers with their indices: transformers lists their class names, and each contains an attention module with its index."""
    names = set(getattr(model.backbone.causal_lm, "_no_split_modules", None) or ())
    layers = [module for module in model.backbone.decoder.modules() if type(module).__name__ in names]
    indices = [next((int(str(part.layer_idx)) for part in layer.modules() if hasattr(part, "layer_idx")), -1) for layer in layers]
    if sorted(indices) != list(range(model.backbone.num_layers)):
        raise UserError("system.fsdp: the layers of this architecture cannot be told apart; set it to false")
    return list(zip(layers, indices, strict=True))


def _gathering(index: int) -> Callable[..., None]:
    """Forward hook of a layer that gathers its weights before gradients reach them through its keys and values."""

    def watch(layer: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
        if cache is None or not torch.is_grad_enabled():
            return
        for tensor in (cache.layers[index].keys, cache.layers[index].values):
            if tensor is not None and tensor.requires_grad:
                tensor.register_hook(lambda _: layer.unshard())

    return watch
