"""A KV cache preallocated for the tokens to come: new entries are written in place, and existing ones are not copied."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from kava.cache.layers import KVLayers


class GrowingLayer(DynamicLayer):
    """One layer's keys and values at the front of a larger buffer. Without gradients: the buffer is written in place.

    Args:
        keys, values: the entries so far; copied once, so that the given tensors are not modified.
        room: number of tokens that may follow.
    """

    def __init__(self, keys: Float[Tensor, "B H S D"], values: Float[Tensor, "B H S Dv"], room: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.buffers = [_with_room(keys, room), _with_room(values, room)]
        self._show(keys.shape[-2])

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """Write new entries after the old ones; returns views of all entries."""
        start, stop = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:stop] = new
        self._show(stop)
        return self.keys, self.values

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        """Keep only these rows of the batch."""
        entries = self.keys.shape[-2]
        room = self.buffers[0].shape[-2] - entries
        self.buffers = [_with_room(self.keys[rows], room), _with_room(self.values[rows], room)]
        self._show(entries)

    def _show(self, entries: int) -> None:
        self.keys, self.values = (buffer[:, :, :entries] for buffer in self.buffers)


def to_growing_cache(layers: KVLayers, room: int) -> DynamicCache:
    """A transformers cache that starts from `layers` and takes `room` more tokens without copying existing entries again."""
    cache = DynamicCache()
    cache.layers = [GrowingLayer(keys, values, room) for keys, values in layers]
    return cache


def _with_room(entries: Float[Tensor, "B H S D"], room: int) -> Float[Tensor, "B H R D"]:
    batch, heads, length, width = entries.shape
    buffer = torch.empty(batch, heads, length + room, width, dtype=entries.dtype, device=entries.device)
    buffer[:, :, :length] = entries
    return buffer
