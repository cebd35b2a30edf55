"""Writing one token after the other on a prefix, without gradients; rows that have ended leave."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kava.cache.preallocated import to_growing_cache
from kava.model.backbone import Backbone, Prefix


@runtime_checkable
class Writing(Protocol):
    """A batch that is being written."""

    def next(self, ids: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """Read one token per row; returns the logits of the one that follows."""

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        """Go on with these rows of the batch alone."""


def write_on(backbone: Backbone, prefix: Prefix, room: int) -> Writing:
    """Start to write up to `room` tokens on a prefix, which stays as it was."""
    return _Extending(backbone, prefix) if backbone.compiles else _InPlace(backbone, prefix, room)


class _InPlace:
    """Into a cache that holds room for all tokens."""

    def __init__(self, backbone: Backbone, prefix: Prefix, room: int) -> None:
        self.backbone = backbone
        self.cache = to_growing_cache(prefix.layers, room)
        self.mask = torch.cat([prefix.mask, prefix.mask.new_ones(len(prefix.mask), room)], dim=1)
        self.length = prefix.length
        self.position = prefix.next_position

    def next(self, ids: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        self.length += 1
        embeds = self.backbone.embed(ids[:, None])
        output = self.backbone.call(self.cache, embeds, self.mask[:, : self.length], self.position[:, None])
        self.position = self.position + 1
        return self.backbone.logits(output.last_hidden_state[:, -1])

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        for layer in self.cache.layers:
            layer.keep(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]


class _Extending:
    """Through compiled passes, which take and give plain tensors: the cache is copied per token."""

    def __init__(self, backbone: Backbone, prefix: Prefix) -> None:
        self.backbone = backbone
        self.prefix = prefix

    def next(self, ids: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        run = self.backbone.extend(self.prefix, self.backbone.embed(ids[:, None]))
        self.prefix = run.prefix
        return self.backbone.logits(run.hidden[:, -1])

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        prefix = self.prefix
        layers = tuple((keys[rows], values[rows]) for keys, values in prefix.layers)
        self.prefix = Prefix(layers, prefix.mask[rows], prefix.next_position[rows], prefix.last_hidden[rows])
