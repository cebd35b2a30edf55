"""Writing one token after the other on a prefix, without gradients; rows that have ended leave."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable
from weakref import ref

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kava.cache.preallocated import to_growing_cache
from kava.cache.static import static_cache
from kava.model.backbone import Backbone, Prefix
from kava.model.graphs import InferenceGraphs

CAPACITY_STEP = 64
"""Static caches have room for a multiple of this, so that few sizes occur."""

LEAST = 1e-6
"""Temperature below which logits would leave float32, and nothing but the likeliest token is drawn anyway."""


Choose = Callable[[Tensor], Tensor]


@runtime_checkable
class Writing(Protocol):
    """A batch that is being written."""

    def next(self, ids: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """Read one token per row; returns the logits of the one that follows."""

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        """Go on with these rows of the batch alone."""


def write_on(backbone: Backbone, prefix: Prefix, room: int) -> Writing:
    """Start to write up to `room` tokens on a prefix, which stays as it was."""
    if backbone.compiles:
        return _Extending(backbone, prefix)
    if backbone.graphs is not None:
        return _Static(backbone, prefix, room)
    return _InPlace(backbone, prefix, room)


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
        embeds = self.backbone.embed_written(ids[:, None])
        output = self.backbone.call(self.cache, embeds, self.mask[:, : self.length], self.position[:, None])
        self.position = self.position + 1
        return self.backbone.logits(output.last_hidden_state[:, -1])

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        for layer in self.cache.layers:
            layer.keep(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]


class _Static:
    """Into a cache of fixed size, one graph per size of batch and cache. Rows that have ended stay, and nobody reads them."""

    def __init__(self, backbone: Backbone, prefix: Prefix, room: int) -> None:
        capacity = -(-(prefix.length + room) // CAPACITY_STEP) * CAPACITY_STEP
        assert backbone.graphs is not None
        key = ("decode", len(prefix.mask), capacity)
        self.backbone = backbone
        self.step: _DecodingStep = backbone.graphs.get(
            key, lambda: _DecodingStep(backbone, prefix, capacity), busy=lambda step: step.writer() is not None
        )
        # An answer that is read piece by piece may not be over when the next one begins.
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
    """One token for every row: buffers, and the pass that reads and moves them on."""

    def __init__(self, backbone: Backbone, prefix: Prefix, capacity: int) -> None:
        rows, device = len(prefix.mask), prefix.mask.device
        self.backbone = backbone
        self.slot = torch.zeros(1, dtype=torch.long, device=device)
        self.ids = torch.zeros(rows, dtype=torch.long, device=device)
        self.position = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.mask = torch.zeros(rows, 1, 1, capacity, dtype=torch.bool, device=device)
        self.cache: Any = static_cache(prefix.layers, capacity, self.slot)
        self.captured: Any = None
        # Whose answer is in the buffers, while it is being written.
        self.writer: Callable[[], _Static | None] = lambda: None

    def load(self, prefix: Prefix) -> None:
        """Start from a prefix."""
        self.slot.fill_(prefix.length)
        self.position.copy_(prefix.next_position[:, None])
        self.mask.zero_()
        self.mask[:, 0, 0, : prefix.length] = prefix.mask
        for layer, (keys, values) in zip(self.cache.layers, prefix.layers, strict=True):
            layer.load(keys, values)

    def run(self) -> Float[Tensor, "B V"]:
        """Logits behind the tokens in `ids`."""
        if self.captured is None:
            assert self.backbone.graphs is not None
            saved = [tensor.clone() for tensor in (self.slot, self.position, self.mask)]
            self.captured = self.backbone.graphs.capture(self._pass)
            # A pass that warmed up has moved them on.
            for tensor, before in zip((self.slot, self.position, self.mask), saved, strict=True):
                tensor.copy_(before)
        logits: Tensor = self.captured()
        return logits

    def _pass(self) -> Tensor:
        self.mask.index_fill_(3, self.slot, True)
        embeds = self.backbone.embed_written(self.ids[:, None]).to(self.backbone.causal_lm.dtype)
        # A tensor of its own: what attention makes of a mask lives as long as the mask.
        output = self.backbone.decode(self.cache, embeds, self.mask.clone(), self.position)
        logits = self.backbone.logits(output.last_hidden_state[:, -1])
        self.slot.add_(1)
        self.position.add_(1)
        return logits


class _Extending:
    """Through compiled passes, which take and give plain tensors: the cache is copied per token."""

    def __init__(self, backbone: Backbone, prefix: Prefix) -> None:
        self.backbone = backbone
        self.prefix = prefix

    def next(self, ids: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        run = self.backbone.extend(self.prefix, self.backbone.embed_written(ids[:, None]))
        self.prefix = run.prefix
        return self.backbone.logits(run.hidden[:, -1])

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        prefix = self.prefix
        layers = tuple((keys[rows], values[rows]) for keys, values in prefix.layers)
        self.prefix = Prefix(layers, prefix.mask[rows], prefix.next_position[rows], prefix.last_hidden[rows])


class ReplayedStart:
    """Reading a batch of questions and thinking, from buffers that stay where they are."""

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
    """The likeliest token of each row, or one drawn at a temperature above 0."""
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial((logits.float() / max(temperature, LEAST)).softmax(-1), 1, generator=generator)[:, 0]
