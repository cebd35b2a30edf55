"""What has been read: the KV cache of a batch of sequences with its mask and positions, and the result of a pass that extends it."""

from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Bool, Float, Int
from torch import Tensor

from kava.cache.layers import KVLayers, slice_layers


@dataclass(frozen=True)
class Prefix:
    """The state of a batch of sequences after the tokens read so far.

    Attributes:
        entries: the KV cache, whose first S entries per layer count.
        mask: which entries are real, [B, S].
        next_position: position id of the token that comes next, per example, [B].
        last_hidden: last-layer hidden state of the final entry, [B, 1, E].
    """

    entries: KVLayers
    mask: Bool[Tensor, "B S"]
    next_position: Int[Tensor, " B"]
    last_hidden: Float[Tensor, "B 1 E"]

    @property
    def length(self) -> int:
        """S, padding included."""
        return self.mask.shape[1]

    @cached_property
    def layers(self) -> KVLayers:
        """The KV cache, S entries per layer."""
        if all(keys.shape[2] <= self.length for keys, _ in self.entries):
            return self.entries
        return slice_layers(self.entries, 0, self.length)

    def shortened(self, removed: int, last_hidden: Float[Tensor, "B 1 E"]) -> "Prefix":
        """The prefix without its last `removed` entries, all of which must be real."""
        if removed == 0:
            return self
        keep = self.length - removed
        return Prefix(self.entries, self.mask[:, :keep], self.next_position - removed, last_hidden)


@dataclass(frozen=True)
class Extension:
    """The result of one forward pass over n tokens.

    Attributes:
        prefix: the old prefix and the n new entries.
        hidden: last-layer hidden states of the new tokens, [B, n, E].
        all_hidden: hidden states after each layer, L tensors [B, n, E]; None unless requested.
    """

    prefix: Prefix
    hidden: Float[Tensor, "B n E"]
    all_hidden: tuple[Tensor, ...] | None = None
