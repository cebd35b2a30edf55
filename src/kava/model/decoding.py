"""Token-by-token decoding from a prefix, without gradients; finished rows are dropped from the batch."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable
from weakref import ref

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kava.cache.preallocated import to_growing_cache
from kava.cache.prefix import Prefix
from kava.cache.static import static_cache
from kava.model.backbone import Backbone
from kava.model.graphs import InferenceGraphs

CAPACITY_STEP = 64
"""The capacity of static caches is rounded up to a multiple of this, so that few sizes occur."""

MIN_TEMPERATURE = 1e-6
"""Smallest temperature used. Below it, scaled logits could overflow float32, and sampling gives the most likely token anyway."""


Choose = Callable[[Tensor], Tensor]


@runtime_checkable
class Writing(Protocol):
    """A batch that is being decoded."""

    def next(self, ids: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """Read one token per row; returns the logits of the next token."""

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        """Keep only these rows of the batch."""


def start_decoding(backbone: Backbone, prefix: Prefix, room: int) -> Writing:
    """Start decoding up to `room` tokens from a prefix, which is not modified."""
    if backbone.compiles:
        return _Extending(backbone, prefix)
    if backbone.graphs is not None:
        return _Static(backbone, prefix, room)
    return _InPlace(backbone, prefix, room)


class _InPlace:
    """Decoding with a cache that is preallocated for all tokens."""

    def __init__(self, backbone: Backbone, prefix: Prefix, room: int) -> None:
        self.backbone = backbone
        self.cache = to_growing_cache(prefix.layers, room)
        self.mask = torch.cat([prefix.mask, prefix.mask.new_ones(len(prefix.mask), room)], dim=1)
        self.length = prefix.length
        self.position = prefix.next_position

    def next(self, ids: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        self.length += 1
        embeds = self.backbone.embed_generated(ids[:, None])
        output = self.backbone.call(self.cache, embeds, self.mask[:, : self.length], self.position[:, None])
        self.position = self.position + 1
        return self.backbone.logits(output.last_hidden_state[:, -1])

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        for layer in self.cache.layers:
            layer.keep(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]


class _Static:
    """Decoding with a cache of fixed size, one graph per batch size and capacity. Finished rows stay in the buffers, unused."""

    def __init__(self, backbone: Backbone, prefix: Prefix, room: int) -> None:
        capacity = -(-(prefix.length + room) // CAPACITY_STEP) * CAPACITY_STEP
        assert backbone.graphs is not None
        key = ("decode", len(prefix.mask), capacity)
        self.backbone = backbone
        self.step: _DecodingStep = backbone.graphs.get(
            key, lambda: _DecodingStep(backbone, prefix, capacity), busy=lambda step: step.writer() is not None
        )
        # A streamed answer may not be finished when the next one starts.
        self.step.writer = ref(self)
        self.step.load(prefix)
        self.rows: Tensor | None = None
        self.length = prefix.length

    def next(self, ids: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        self.length += 1
        self.backbone.count_pass(self.length)
        if self.rows is None:
            self.step.ids.copy_(ids)
        else:
            self.step.ids.index_copy_(0, self.rows, ids)
        logits = self.step.run()
        return logits if self.rows is None else logits.index_select(0, self.rows)

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        self.rows = rows if self.rows is None else self.rows[rows]


class _DecodingStep:
    """One decoding step for every row: the buffers, and the pass that reads and advances them."""

    def __init__(self, backbone: Backbone, prefix: Prefix, capacity: int) -> None:
        rows, device = len(prefix.mask), prefix.mask.device
        self.backbone = backbone
        self.slot = torch.zeros(1, dtype=torch.long, device=device)
        self.ids = torch.zeros(rows, dtype=torch.long, device=device)
        self.position = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.mask = torch.zeros(rows, 1, 1, capacity, dtype=torch.bool, device=device)
        self.cache: Any = static_cache(prefix.layers, capacity, self.slot)
        self.captured: Any = None
        # Returns the `_Static` whose answer is in the buffers, or None if it no longer exists.
        self.writer: Callable[[], _Static | None] = lambda: None

    def load(self, prefix: Prefix) -> None:
        """Fill the buffers from a prefix."""
        self.slot.fill_(prefix.length)
        self.position.copy_(prefix.next_position[:, None])
        self.mask.zero_()
        self.mask[:, 0, 0, : prefix.length] = prefix.mask
        for layer, (keys, values) in zip(self.cache.layers, prefix.layers, strict=True):
            layer.load(keys, values)

    def run(self) -> Float[Tensor, "B V"]:
        """Run one step; returns the logits that follow the tokens in `ids`."""
        if self.captured is None:
            assert self.backbone.graphs is not None
            saved = [tensor.clone() for tensor in (self.slot, self.position, self.mask)]
            self.captured = self.backbone.graphs.capture(self._pass)
            # The warm-up pass of the capture has advanced them.
            for tensor, before in zip((self.slot, self.position, self.mask), saved, strict=True):
                tensor.copy_(before)
        logits: Tensor = self.captured()
        return logits

    def _pass(self) -> Tensor:
        self.mask.index_fill_(3, self.slot, True)
        embeds = self.backbone.embed_generated(self.ids[:, None]).to(self.backbone.causal_lm.dtype)
        # A clone, because attention caches the additive mask on the mask tensor, and this mask changes at every step.
        output = self.backbone.decode(self.cache, embeds, self.mask.clone(), self.position)
        logits = self.backbone.logits(output.last_hidden_state[:, -1])
        self.slot.add_(1)
        self.position.add_(1)
        return logits


class _Extending:
    """Decoding with compiled passes, which take and return plain tensors: the cache is copied for every token."""

    def __init__(self, backbone: Backbone, prefix: Prefix) -> None:
        self.backbone = backbone
        self.prefix = prefix

    def next(self, ids: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        run = self.backbone.extend(self.prefix, self.backbone.embed_generated(ids[:, None]))
        self.prefix = run.prefix
        return self.backbone.logits(run.hidden[:, -1])

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        prefix = self.prefix
        layers = tuple((keys[rows], values[rows]) for keys, values in prefix.layers)
        self.prefix = Prefix(layers, prefix.mask[rows], prefix.next_position[rows], prefix.last_hidden[rows])


class ReplayedStart:
    """Reading a batch of questions and latent reasoning, captured with input buffers at fixed addresses."""

    def __init__(
        self, run: Callable[[Tensor, Tensor], tuple[Prefix, Tensor, int]], ids: Tensor, mask: Tensor, graphs: InferenceGraphs
    ) -> None:
        self.ids, self.mask = ids.clone(), mask.clone()
        self.replay = graphs.capture(lambda: run(self.ids, self.mask))

    def __call__(self, ids: Tensor, mask: Tensor) -> tuple[Prefix, Tensor, int]:
        self.ids.copy_(ids)
        self.mask.copy_(mask)
        return self.replay()


def choose_token(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """The most likely token of each row, or a sampled one if the temperature is above 0."""
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial((logits.float() / max(temperature, MIN_TEMPERATURE)).softmax(-1), 1, generator=generator)[:, 0]
