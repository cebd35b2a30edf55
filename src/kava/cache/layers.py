"""KV caches as plain per-layer tensors, in and out of transformers' `DynamicCache`.

A cache is a tuple of (keys, values), one pair per layer, each [B, H, S, D] and carrying gradients. Shortening one is a
slice, never an in-place crop, so that one question can be shared by several passes.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

KVLayers = tuple[tuple[Tensor, Tensor], ...]


class _Layer(DynamicLayer):
    """A `DynamicLayer` that takes its first entries as they are; transformers' own copies them behind an empty tensor."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add entries; returns all entries."""
        if self.is_initialized:
            return super().update(key_states, value_states, *args, **kwargs)
        self.lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states, value_states
        return self.keys, self.values


def to_dynamic_cache(layers: KVLayers) -> DynamicCache:
    """A `DynamicCache` that starts from `layers`; updates concatenate, so the given tensors are not modified."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = _Layer
    for keys, values in layers:
        layer = _Layer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def from_dynamic_cache(cache: DynamicCache) -> KVLayers:
    """The tensors that a cache holds."""
    return tuple((layer.keys, layer.values) for layer in cache.layers)


def slice_layers(layers: KVLayers, start: int, stop: int) -> KVLayers:
    """Entries `start` to `stop` (exclusive) of every layer."""
    return tuple((keys[:, :, start:stop], values[:, :, start:stop]) for keys, values in layers)


def stack_layers(layers: KVLayers, start: int, stop: int) -> tuple[Float[Tensor, "L B H S D"], Float[Tensor, "L B H S D"]]:
    """Keys and values of entries `start` to `stop`, stacked over layers."""
    part = slice_layers(layers, start, stop)
    return torch.stack([keys for keys, _ in part]), torch.stack([values for _, values in part])


def cache_bytes(layers: KVLayers) -> int:
    """Memory that a cache holds, in bytes."""
    return sum(tensor.numel() * tensor.element_size() for pair in layers for tensor in pair)
