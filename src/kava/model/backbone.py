"""Any causal language model of transformers, reduced to three calls: embed tokens, extend a prefix, read off logits.

Masks and position ids belong to every call here, the latent ones first; leaving them to defaults is how padding leaks
into other implementations (docs/evidence.md).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn

from kava.cache.attention import PREFIX, is_recording
from kava.cache.layers import KVLayers, from_dynamic_cache, slice_layers, to_dynamic_cache
from kava.cache.limits import entry_limit
from kava.cache.masks import additive
from kava.errors import UserError
from kava.model.adapters import Adapters, share_inputs
from kava.model.graphs import InferenceGraphs
from kava.model.head import liger_losses, new_token_rows, next_token_logits, next_token_losses


@dataclass(frozen=True)
class Prefix:
    """What a sequence has read so far.

    Attributes:
        layers: its KV cache, S entries per layer.
        mask: which entries are real, [B, S].
        next_position: position id of the token that comes next, per example, [B].
        last_hidden: last-layer hidden state of the final entry, [B, 1, E].
    """

    layers: KVLayers
    mask: Bool[Tensor, "B S"]
    next_position: Int[Tensor, " B"]
    last_hidden: Float[Tensor, "B 1 E"]

    @property
    def length(self) -> int:
        """S, padding included."""
        return self.mask.shape[1]

    def shortened(self, removed: int, last_hidden: Float[Tensor, "B 1 E"]) -> "Prefix":
        """The prefix without its last `removed` entries, all of which must be real."""
        if removed == 0:
            return self
        keep = self.length - removed
        return Prefix(slice_layers(self.layers, 0, keep), self.mask[:, :keep], self.next_position - removed, last_hidden)


@dataclass(frozen=True)
class Extension:
    """The outcome of one forward pass over n tokens.

    Attributes:
        prefix: the old prefix and the n new entries.
        hidden: last-layer hidden states of the new tokens, [B, n, E].
        all_hidden: after each layer, where asked for: L tensors [B, n, E].
    """

    prefix: Prefix
    hidden: Float[Tensor, "B n E"]
    all_hidden: tuple[Tensor, ...] | None = None


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; the mode from before afterwards, also after an error."""
    if not module.training:
        # Walking all modules takes milliseconds, as long as three tokens of a small model.
        yield
        return
    module.eval()
    try:
        yield
    finally:
        module.train()


class Backbone(nn.Module):
    """A transformers causal language model, bare or wrapped by peft.

    Args:
        model: the causal language model; its embeddings already have rows for the new tokens.
        special_ids: ids of `<bot>`, `<eot>` and `<latent>`.
    """

    special_ids: Tensor

    def __init__(self, model: Any, special_ids: list[int]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("special_ids", torch.tensor(special_ids), persistent=False)
        self.forward_passes = 0
        self.fused = False
        self.compiles = False
        self._compiled: Callable[..., tuple[Tensor, KVLayers]] = self._pass
        self._limit = entry_limit(self.causal_lm)
        self.adapters = Adapters(())
        self.graphs: InferenceGraphs | None = None

    @property
    def causal_lm(self) -> Any:
        """The transformers model itself, adapters in place."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def decoder(self) -> Any:
        """The stack of layers without the language-model head."""
        model = self.causal_lm
        # Llama-4's base model prefix names its place in a model of images and text, and leads back to the model itself.
        return model.model if model.base_model is model else model.base_model

    @property
    def waits(self) -> bool:
        """Whether a step asks the device for a number: liger's cross-entropy counts labels, FlashAttention 2 takes padding out."""
        return self.fused or str(self.causal_lm.config._attn_implementation).endswith("flash_attention_2")

    @property
    def num_layers(self) -> int:
        """L."""
        return int(self.causal_lm.config.get_text_config().num_hidden_layers)

    def require(self, entries: int) -> None:
        """See that a sequence of so many entries, padding included, is within the model's reach.

        Raises:
            UserError: it is longer than a sliding window or the table of positions.
        """
        if self._limit is not None and entries > self._limit[0]:
            limit, what = self._limit
            raise UserError(
                f"a sequence of {entries} entries (question, thought, answer) is longer than this model reaches: {limit}, by {what}; "
                "lower dataset.max_length, latent.num_tokens or evaluation.max_new_tokens, or choose another model"
            )

    def share_adapter_inputs(self) -> None:
        """Compute LoRA in groups of maps that read the same tensor (`kava.model.adapters`); to be called once, after LoRA is in place."""
        if not hasattr(self.model, "peft_config"):
            return
        ids = torch.zeros(1, 2, dtype=torch.long, device=self.special_ids.device)
        with torch.no_grad(), evaluating(self):
            self.adapters = share_inputs(self.model, lambda: self.read(ids, torch.ones_like(ids, dtype=torch.bool)))
        self.forward_passes = 0
        # Whoever calls the language model itself passes `count_pass` by.
        self.model.register_forward_pre_hook(lambda *_: self.adapters.refresh_if_changed())

    def embed(self, ids: Int[Tensor, "B n"]) -> Float[Tensor, "B n E"]:
        """Input embeddings of ordinary text, which holds no new token."""
        embedding = self.causal_lm.get_input_embeddings()
        if isinstance(embedding, TrainableTokensWrapper):
            embedding = embedding.original_module
        embedded: Tensor = embedding(ids)
        return embedded

    def embed_written(self, ids: Int[Tensor, "B n"]) -> Float[Tensor, "B n E"]:
        """Input embeddings of what the model itself wrote: a new token among it has its trained row, which `embed` does not know."""
        embedded = self.embed(ids)
        if not isinstance(self.causal_lm.get_input_embeddings(), TrainableTokensWrapper):
            return embedded
        is_new = ids[..., None] == self.special_ids
        rows = is_new.to(embedded.dtype) @ self.special_embeddings().to(embedded.dtype)
        return torch.where(is_new.any(-1, keepdim=True), rows, embedded)

    def special_embeddings(self) -> Float[Tensor, "3 E"]:
        """Trained input embeddings of `<bot>`, `<eot>` and `<latent>`."""
        embedding = self.causal_lm.get_input_embeddings()
        if isinstance(embedding, TrainableTokensWrapper):
            # peft's own forward copies the whole V x E matrix to swap three rows, and back-propagates through the copy.
            scale = getattr(embedding.original_module, "embed_scale", None)
            rows = new_token_rows(embedding)
            return rows if scale is None else rows * scale.to(rows.dtype)
        embedded: Tensor = embedding(self.special_ids)
        return embedded

    def logits(self, hidden: Float[Tensor, "*N E"]) -> Float[Tensor, "*N V"]:
        """Next-token logits; with tied embeddings, the new tokens' columns use their trained rows."""
        return next_token_logits(self.causal_lm, self.special_ids, hidden)

    def token_losses(self, hidden: Float[Tensor, "N E"], labels: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Cross-entropy of each token from its hidden state: what `logits` and a loss on them give, on a GPU without all logits at once."""
        if self.fused:
            return liger_losses(self.causal_lm, self.special_ids, hidden, labels)
        return next_token_losses(self.causal_lm, self.special_ids, hidden, labels)

    def use_graphs(self, on: bool = True) -> None:
        """Read and write answers through buffers of fixed size, on a GPU as CUDA graphs, where the architecture allows it."""
        plain = getattr(self.causal_lm, "_can_compile_fullgraph", False) and self.causal_lm.config._attn_implementation == PREFIX + "sdpa"
        self.graphs = InferenceGraphs(self.special_ids.device) if on and plain else None

    @contextmanager
    def with_graphs(self, on: bool) -> Iterator[None]:
        """`use_graphs` inside the block; their memory is free again behind it."""
        self.use_graphs(on)
        try:
            yield
        finally:
            self.graphs = None

    def compile_passes(self) -> None:
        """Let torch compile the passes that extend a prefix and show nothing of their inside: latents and decoding."""
        self.compiles = True
        self._compiled = torch.compile(self._pass, dynamic=True)

    def read(
        self,
        ids: Int[Tensor, "B Q"],
        mask: Bool[Tensor, "B Q"],
        tail: Float[Tensor, "B n E"] | None = None,
        tail_mask: Bool[Tensor, "B n"] | None = None,
    ) -> Extension:
        """Run left-padded text from nothing, and in the same pass the embeddings of `tail` behind it (default: all real)."""
        embeds = self.embed(ids)
        if tail is not None:
            embeds = torch.cat([embeds, tail.to(embeds.dtype)], dim=1)
            mask = torch.cat([mask, mask.new_ones(tail.shape[:2]) if tail_mask is None else tail_mask], dim=1)
        position_ids = (mask.long().cumsum(1) - 1).clamp(min=0)
        return self._run(None, embeds, mask, position_ids)

    def read_masked(
        self, embeds: Float[Tensor, "B n E"], mask: Bool[Tensor, "B n n"], position_ids: Int[Tensor, "B n"]
    ) -> Float[Tensor, "B n E"]:
        """Run embeddings from nothing, each of which sees what its row of `mask` shows; last-layer hidden states, nothing else is kept."""
        embeds = self._count(embeds, mask)
        own = mask[:, None]
        if self.causal_lm.config._attn_implementation.endswith("eager"):
            own = additive(own, embeds.dtype, torch.finfo(embeds.dtype).min)
        hidden: Tensor = self.decode(to_dynamic_cache(()), embeds, own, position_ids).last_hidden_state
        return hidden

    def extend(
        self,
        prefix: Prefix,
        embeds: Float[Tensor, "B n E"],
        mask: Bool[Tensor, "B n"] | None = None,
        *,
        keep_hidden: bool = False,
    ) -> Extension:
        """Run n further tokens on a prefix, which stays as it was. Gaps of `mask` must come last (right padding).

        Args:
            prefix: what came before.
            embeds: input embeddings of the new tokens.
            mask: which of them are real (default: all).
            keep_hidden: return every layer's hidden states too.
        """
        if mask is None:
            mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        position_ids = prefix.next_position[:, None] + torch.arange(embeds.shape[1], device=embeds.device)
        return self._run(prefix, embeds, mask, position_ids, keep_hidden)

    def _run(self, prefix: Prefix | None, embeds: Tensor, mask: Tensor, position_ids: Tensor, keep_hidden: bool = False) -> Extension:
        full_mask = mask if prefix is None else torch.cat([prefix.mask, mask], dim=1)
        start = 0 if prefix is None else prefix.next_position
        if self.compiles and prefix is not None and not keep_hidden and not is_recording():
            embeds = self._count(embeds, full_mask)
            hidden, layers = self._compiled(embeds, full_mask.long(), position_ids, prefix.layers)
            return Extension(Prefix(layers, full_mask, start + mask.sum(1), hidden[:, -1:]), hidden)
        cache = to_dynamic_cache(() if prefix is None else prefix.layers)
        output = self.call(cache, embeds, full_mask, position_ids, keep_hidden)
        hidden = output.last_hidden_state
        extended = Prefix(from_dynamic_cache(output.past_key_values), full_mask, start + mask.sum(1), hidden[:, -1:])
        return Extension(extended, hidden, tuple(output.hidden_states[1:]) if keep_hidden else None)

    def call(self, cache: Any, embeds: Tensor, full_mask: Tensor, position_ids: Tensor, keep_hidden: bool = False) -> Any:
        """One forward pass of the decoder, counted; `full_mask` covers cache and embeds."""
        return self.decode(cache, self._count(embeds, full_mask), full_mask.long(), position_ids, keep_hidden)

    def count_pass(self, entries: int) -> None:
        """Note a forward pass that ends with so many cache entries; adapters' weights are brought up to date."""
        self.forward_passes += 1
        self.adapters.refresh_if_changed()
        self.require(entries)

    def _count(self, embeds: Tensor, full_mask: Tensor) -> Tensor:
        self.count_pass(full_mask.shape[1])
        # The projection and the new tokens' rows are float32, whatever the base is stored in.
        return embeds.to(self.causal_lm.dtype)

    def _pass(self, embeds: Tensor, mask: Tensor, position_ids: Tensor, layers: KVLayers) -> tuple[Tensor, KVLayers]:
        output = self.decode(to_dynamic_cache(layers), embeds, mask, position_ids, False)
        return output.last_hidden_state, from_dynamic_cache(output.past_key_values)

    def decode(self, cache: Any, embeds: Tensor, mask: Tensor, position_ids: Tensor, keep_hidden: bool = False) -> Any:
        """The decoder itself, uncounted; `mask` as it takes it: [B, S], or prepared, [B, 1, n, S]."""
        return self.decoder(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=keep_hidden,
        )
