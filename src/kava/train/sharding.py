"""One model over several processes (`system.fsdp`): each keeps a share of every weight, and a layer is whole only while it is at work.

Torch's own `fully_shard` (FSDP2), with two things that the method needs. The decoder layers run several times per step, and
gradients reach them through their keys and values too, before their output has one, or without: the layer is then gathered for the
keys and values. And validation asks the model outside a training step, so that all processes must take the same passes together.
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
    """Split every weight over the processes of the run, layer by layer. The process group is open already.

    Raises:
        UserError: the layers cannot be told apart.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # A weight is whole in its own module's forward pass alone, which a group of adapters does not go through.
    model.backbone.adapters.part()
    mesh = init_device_mesh(device.type, (world_size(),))
    for layer, index in _layers(model):
        fully_shard(layer, mesh=mesh)
        layer.register_forward_hook(_gathering(index), with_kwargs=True)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "call")
    model.split = True


def together(model: KavaModel, run: Callable[[], Result]) -> Result:
    """Run passes outside a training step; all processes call this, and take the same passes."""
    result: Result = model.call(run)
    cast(Any, model).reshard()
    return result


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from its shares, on the CPU; all processes call this."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: KavaModel) -> dict[str, Tensor]:
    """Everything that a checkpoint holds of a sharded model, by the model's own names; all processes call this."""
    from peft import PeftModel

    parameters = dict(model.named_parameters(remove_duplicate=False))
    # Of an adapter's base nothing is saved, so nothing is gathered.
    adapter = isinstance(model.backbone.model, PeftModel)
    state = model.state_dict()
    names = [name for name in state if not adapter or (name in parameters and parameters[name].requires_grad)]
    # Tied weights stay one tensor, or they would be saved twice.
    gathered: dict[int, Tensor] = {}
    weights = {}
    for name in names:
        held = parameters.get(name, state[name])
        if id(held) not in gathered:
            gathered[id(held)] = whole(held.detach())
        weights[name] = gathered[id(held)]
    return weights


def make_portable(optimizer: torch.optim.Optimizer) -> None:
    """Save and load an optimizer's state as one process would, whatever the number of processes."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    def gather(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        return state | {"state": {key: {name: whole(value) for name, value in held.items()} for key, held in state["state"].items()}}

    def scatter(loaded: torch.optim.Optimizer) -> None:
        for parameter, held in loaded.state.items():
            for name, value in held.items():
                if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
                    held[name] = distribute_tensor(value, parameter.device_mesh, parameter.placements)

    optimizer.register_state_dict_post_hook(gather)
    optimizer.register_load_state_dict_post_hook(scatter)


def _layers(model: KavaModel) -> list[tuple[Any, int]]:
    """The decoder's layers: transformers names their classes, and each holds one attention with its index."""
    names = set(getattr(model.backbone.causal_lm, "_no_split_modules", None) or ())
    layers = [module for module in model.backbone.decoder.modules() if type(module).__name__ in names]
    indices = [next((int(str(part.layer_idx)) for part in layer.modules() if hasattr(part, "layer_idx")), -1) for layer in layers]
    if sorted(indices) != list(range(model.backbone.num_layers)):
        raise UserError("system.fsdp: the layers of this architecture cannot be told apart; set it to false")
    return list(zip(layers, indices, strict=True))


def _gathering(index: int) -> Callable[..., None]:
    """A hook behind a layer's forward pass: whole weights before gradients reach them through its keys and values."""

    def watch(layer: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
        if cache is None or not torch.is_grad_enabled():
            return
        for tensor in (cache.layers[index].keys, cache.layers[index].values):
            if tensor is not None and tensor.requires_grad:
                tensor.register_hook(lambda _: layer.unshard())

    return watch
