"""A wrapper of any transformers causal language model with three basic calls: embed tokens, extend a prefix, compute logits.

Every pass gets an explicit attention mask and explicit position ids, latent passes above all. Other implementations leave them to
defaults, and padding leaks into attention or positions (docs/evidence.md).
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn

from kava.cache.attention import PREFIX, is_recording
from kava.cache.layers import KVLayers, from_dynamic_cache, to_dynamic_cache
from kava.cache.limits import check_length, entry_limit
from kava.cache.masks import additive
from kava.cache.prefix import Extension, Prefix
from kava.model.adapters import Adapters, share_inputs
from kava.model.graphs import InferenceGraphs, reads_values
from kava.model.head import liger_losses, new_token_rows, next_token_logits, next_token_losses


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode inside the block; restore the previous mode afterwards, also after an error."""
    if not module.training:
        # Visiting all modules takes milliseconds, as long as decoding three tokens with a small model.
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
        device = self.causal_lm.get_input_embeddings().weight.device  # a GPU's already, for a 4-bit base
        self.register_buffer("special_ids", torch.tensor(special_ids, device=device), persistent=False)
        self.forward_passes = 0
        self.fused = self.liger_softmax = self.compiles = False
        self._reads_values = reads_values(self.causal_lm)
        self._compiled: Callable[..., tuple[Tensor, KVLayers]] = self._pass
        self._limit = entry_limit(self.causal_lm)
        self.adapters = Adapters(())
        self.graphs: InferenceGraphs | None = None

    @property
    def causal_lm(self) -> Any:
        """The transformers model without peft's wrapper, with adapters in place."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def decoder(self) -> Any:
        """The stack of layers without the language-model head."""
        model = self.causal_lm
        # Llama 4's base_model_prefix is that of the multimodal model, so `base_model` returns the model itself.
        return model.model if model.base_model is model else model.base_model

    @property
    def syncs_with_device(self) -> bool:
        """Whether a step waits for the device: liger's cross-entropy counts labels, FlashAttention 2 removes padding, or `reads_values`."""
        return self.fused or self._reads_values or str(self.causal_lm.config._attn_implementation).endswith("flash_attention_2")

    @property
    def takes_any_mask(self) -> bool:
        """Whether a pass depends on nothing but the values it gets: any mask [B, 1, n, S] and positions, none of them read by the host."""
        plain = getattr(self.causal_lm, "_can_compile_fullgraph", False) and self.causal_lm.config._attn_implementation == PREFIX + "sdpa"
        return plain and not self._reads_values

    @property
    def num_layers(self) -> int:
        """Number of layers, L."""
        return int(self.causal_lm.config.get_text_config().num_hidden_layers)

    def require(self, entries: int) -> None:
        """Check that the model can read a sequence of this many entries, padding included.

        Raises:
            UserError: it is longer than the sliding window or the range of positions (`kava.cache.limits`).
        """
        check_length(self._limit, entries)

    def spare(self, entries: int) -> int:
        """How many more entries than this many the model could read."""
        return sys.maxsize if self._limit is None else self._limit[0] - entries

    def share_adapter_inputs(self) -> None:
        """Compute LoRA in groups of layers that read the same tensor (`kava.model.adapters`). Call once, after LoRA is in place."""
        if not hasattr(self.model, "peft_config"):
            return
        ids = torch.zeros(1, 2, dtype=torch.long, device=self.special_ids.device)
        with torch.no_grad(), evaluating(self):
            self.adapters = share_inputs(self.model, lambda: self.read(ids, torch.ones_like(ids, dtype=torch.bool)))
        self.forward_passes = 0
        # Code that calls the language model directly bypasses `count_pass`.
        self.model.register_forward_pre_hook(lambda *_: self.adapters.refresh_if_changed())

    def embed(self, ids: Int[Tensor, "B n"]) -> Float[Tensor, "B n E"]:
        """Input embeddings of ordinary text, which contains none of the new tokens."""
        embedding = self.causal_lm.get_input_embeddings()
        if isinstance(embedding, TrainableTokensWrapper):
            embedding = embedding.original_module
        embedded: Tensor = embedding(ids)
        return embedded

    def embed_generated(self, ids: Int[Tensor, "B n"]) -> Float[Tensor, "B n E"]:
        """Input embeddings of generated text: new tokens in it get their trained rows, which `embed` does not use."""
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
        """Cross-entropy of each label, equal to a loss on `logits`; on a GPU usually without holding all logits at once."""
        if self.fused:
            return liger_losses(self.causal_lm, self.special_ids, hidden, labels)
        return next_token_losses(self.causal_lm, self.special_ids, hidden, labels, liger=self.liger_softmax)

    def use_graphs(self, on: bool = True) -> None:
        """Run inference through buffers of fixed size, on a GPU as CUDA graphs, if the architecture allows it."""
        self.graphs = InferenceGraphs(self.special_ids.device) if on and self.takes_any_mask else None

    @contextmanager
    def with_graphs(self, on: bool) -> Iterator[None]:
        """`use_graphs` inside the block; frees the memory of the graphs afterwards."""
        self.use_graphs(on)
        try:
            yield
        finally:
            self.graphs = None

    def compile_passes(self) -> None:
        """Compile the passes that extend a prefix and record neither hidden states nor attention, such as latents and decoding."""
        self.compiles = True
        self._compiled = torch.compile(self._pass, dynamic=True)

    def read(
        self,
        ids: Int[Tensor, "B Q"],
        mask: Bool[Tensor, "B Q"],
        tail: Float[Tensor, "B n E"] | None = None,
        tail_mask: Bool[Tensor, "B n"] | None = None,
    ) -> Extension:
        """Run left-padded text without a prefix, followed by the embeddings of `tail` in the same pass (`tail_mask` default: all real)."""
        embeds = self.embed(ids)
        if tail is not None:
            embeds = torch.cat([embeds, tail.to(embeds.dtype)], dim=1)
            mask = torch.cat([mask, mask.new_ones(tail.shape[:2]) if tail_mask is None else tail_mask], dim=1)
        position_ids = (mask.long().cumsum(1) - 1).clamp(min=0)
        return self._run(None, embeds, mask, position_ids)

    def read_masked(
        self, embeds: Tensor, mask: Bool[Tensor, "B n n"], position_ids: Tensor, entries: int, keep_hidden: bool = False
    ) -> Any:
        """Run embeddings [B, n, E] without a prefix, each attending to the entries in its row of `mask`; returns the decoder's output.

        `entries` is the length of the longest sequence in it; there may be several side by side.
        """
        self.count_pass(entries)
        embeds, own = embeds.to(self.causal_lm.dtype), mask[:, None]
        if self.causal_lm.config._attn_implementation.endswith("eager"):
            own = additive(own, embeds.dtype, torch.finfo(embeds.dtype).min)
        return self.decode(to_dynamic_cache(()), embeds, own, position_ids, keep_hidden)

    def extend(
        self,
        prefix: Prefix,
        embeds: Float[Tensor, "B n E"],
        mask: Bool[Tensor, "B n"] | None = None,
        *,
        keep_hidden: bool = False,
    ) -> Extension:
        """Run n more tokens on a prefix, which is not modified. False entries of `mask` must come last (right padding).

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
            hidden, layers = self._compiled(self._count(embeds, full_mask), full_mask.long(), position_ids, prefix.layers)
            return Extension(Prefix(layers, full_mask, start + mask.sum(1), hidden[:, -1:]), hidden)
        cache = to_dynamic_cache(() if prefix is None else prefix.layers)
        output = self.call(cache, embeds, full_mask, position_ids, keep_hidden)
        hidden = output.last_hidden_state
        extended = Prefix(from_dynamic_cache(output.past_key_values), full_mask, start + mask.sum(1), hidden[:, -1:])
        return Extension(extended, hidden, tuple(output.hidden_states[1:]) if keep_hidden else None)

    def call(self, cache: Any, embeds: Tensor, full_mask: Tensor, position_ids: Tensor, keep_hidden: bool = False) -> Any:
        """Run and count one forward pass of the decoder; `full_mask` covers cache and embeds."""
        return self.decode(cache, self._count(embeds, full_mask), full_mask.long(), position_ids, keep_hidden)

    def count_pass(self, entries: int) -> None:
        """Count a forward pass that ends with this many cache entries, update the adapters' casts and check the length limit."""
        self.forward_passes += 1
        self.adapters.refresh_if_changed()
        self.require(entries)

    def _count(self, embeds: Tensor, full_mask: Tensor) -> Tensor:
        self.count_pass(full_mask.shape[1])
        # The projection and the new tokens' rows are float32, whatever the dtype of the base.
        return embeds.to(self.causal_lm.dtype)

    def _pass(self, embeds: Tensor, mask: Tensor, position_ids: Tensor, layers: KVLayers) -> tuple[Tensor, KVLayers]:
        output = self.decode(to_dynamic_cache(layers), embeds, mask, position_ids, False)
        return output.last_hidden_state, from_dynamic_cache(output.past_key_values)

    def decode(self, cache: Any, embeds: Tensor, mask: Tensor, position_ids: Tensor, keep_hidden: bool = False) -> Any:
        """Run the decoder without counting the pass; `mask` is [B, S], or a prepared mask, [B, 1, n, S]."""
        return self.decoder(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=keep_hidden,
        )
