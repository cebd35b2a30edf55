"""A KV cache of fixed size, written in place at a position stored on the device, so that a CUDA graph can be captured."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from kava.cache.layers import KVLayers


class StaticLayer(DynamicLayer):
    """One layer's keys and values in buffers of fixed size; entries after the last one hold zeros or old values and must be masked.

    Args:
        keys, values: tensors that give the sizes, dtype and device; their values are not used.
        capacity: number of entries that fit.
        slot: index of the next entry, [1]; shared by all layers and advanced by their owner.
    """

    def __init__(self, keys: Float[Tensor, "B H S D"], values: Float[Tensor, "B H S Dv"], capacity: int, slot: Int[Tensor, " 1"]) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.keys = keys.new_zeros(*keys.shape[:2], capacity, keys.shape[3])
        self.values = values.new_zeros(*values.shape[:2], capacity, values.shape[3])
        self.slot = slot

    def load(self, keys: Tensor, values: Tensor) -> None:
        """Copy the first entries into the buffers."""
        self.keys[:, :, : keys.shape[2]] = keys
        self.values[:, :, : values.shape[2]] = values

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """Write one entry per row; returns the whole buffers."""
        self.keys.index_copy_(2, self.slot, key_states)
        self.values.index_copy_(2, self.slot, value_states)
        return self.keys, self.values


def static_cache(layers: KVLayers, capacity: int, slot: Int[Tensor, " 1"]) -> Any:
    """A transformers cache of `StaticLayer`s in the shapes of `layers`; nothing is copied yet."""
    cache = DynamicCache()
    cache.layers = [StaticLayer(keys, values, capacity, slot) for keys, values in layers]
    return cache
