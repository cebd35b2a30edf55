"""Activation checkpointing that keeps the KV cache: a layer's activations are recomputed in the backward pass, its cache is kept.

transformers' own gradient checkpointing drops the cache, which latent passes need. Here each decoder layer takes its part of the
cache as tensors and returns the extended ones, so that gradients flow through keys and values as without checkpointing.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from kava.errors import UserError


def recompute_layers(decoder: nn.Module) -> None:
    """Make every decoder layer keep only its input and its cache for the backward pass. Losses and gradients stay the same.

    Raises:
        UserError: the architecture has no `GradientCheckpointingLayer`.
    """
    layers = [module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError("training.gradient_checkpointing: this architecture's layers cannot be recomputed one by one; set it to false")
    for layer in layers:
        layer.forward = _recomputing(layer.forward, _index(layer))


def _recomputing(forward: Callable[..., Any], index: int) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
        if cache is None or not torch.is_grad_enabled():
            return forward(*args, **kwargs)

        def with_own_cache(keys: Tensor | None, values: Tensor | None, *inner: Any, **named: Any) -> tuple[Any, Tensor, Tensor]:
            own = _one_layer(index, keys, values)
            inner = tuple(own if value is cache else value for value in inner)
            output = forward(*inner, **{name: own if value is cache else value for name, value in named.items()})
            return output, own.layers[index].keys, own.layers[index].values

        held = cache.layers[index] if index < len(cache.layers) and cache.layers[index].is_initialized else None
        start = (None, None) if held is None else (held.keys, held.values)
        output, keys, values = checkpoint(with_own_cache, *start, *args, use_reentrant=False, **kwargs)
        _put(cache, index, keys, values)
        return output

    return run


def _one_layer(index: int, keys: Tensor | None, values: Tensor | None) -> DynamicCache:
    """A cache whose only filled layer is the one given."""
    cache = DynamicCache()
    cache.layers = [DynamicLayer() for _ in range(index + 1)]
    if keys is not None and values is not None:
        _put(cache, index, keys, values)
    return cache


def _put(cache: Cache, index: int, keys: Tensor, values: Tensor) -> None:
    while len(cache.layers) <= index:
        cache.layers.append(DynamicLayer())
    layer = cache.layers[index]
    if not layer.is_initialized:
        layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values


def _index(layer: nn.Module) -> int:
    return next(int(str(module.layer_idx)) for module in layer.modules() if hasattr(module, "layer_idx"))
