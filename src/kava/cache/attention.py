"""Attention backends that can record, on request, how much the answer attends to each CoT token.

Each of transformers' backends is registered once more under a `kava_` name: the same function, plus a recorder that,
while one is active, computes under `no_grad` the probabilities of the answer's rows alone. No S x S matrix is kept.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kava.cache.grouped_attention import attend_grouped, is_grouped
from kava.cache.masks import additive
from kava.cache.short_attention import attend_short, is_short

PREFIX = "kava_"
BACKENDS = ("sdpa", "eager", "flash_attention_2")


@dataclass
class ImportanceRecorder:
    """What to record, and what was recorded, in one teacher pass.

    Attributes:
        rows: query positions within the pass whose attention is recorded: the answer tokens, or R-KV's window, [B, A].
        row_mask: which of them are real.
        start, stop: key columns of the CoT in the cache.
        reduction: of the query heads of a group to one KV head: "max" or "mean" of probabilities, or "logits", the maximum of logits.
        among: CoT entries over which probabilities are normalised, [B, C] (the paper's listing); None: all that a query attends to.
        layers: per layer, the mean probability over `rows`, reduced to KV heads, [B, H, C].
    """

    rows: Int[Tensor, "B A"]
    row_mask: Bool[Tensor, "B A"]
    start: int
    stop: int
    reduction: str = "max"
    among: Bool[Tensor, "B C"] | None = None
    layers: dict[int, Float[Tensor, "B H C"]] = field(default_factory=dict)
    _bias: tuple[Any, tuple[int, int], Tensor] | None = None

    @cached_property
    def weight(self) -> Float[Tensor, "B A"]:
        """The weight of each row in the mean over real rows."""
        return self.row_mask / self.row_mask.sum(-1, keepdim=True).clamp(min=1)

    def bias(self, mask: Tensor | None, queries: int, keys: int) -> Float[Tensor, "B #Nh A K"]:
        """`_row_bias` of the rows, computed once for neighbouring layers with the same mask."""
        if self._bias is None or self._bias[0] is not mask or self._bias[1] != (queries, keys):
            self._bias = mask, (queries, keys), _row_bias(self.rows, mask, queries, keys)
        return self._bias[2]

    def stacked(self) -> Float[Tensor, "L B H C"]:
        """All layers, in order."""
        return torch.stack([self.layers[index] for index in sorted(self.layers)])


_active: ContextVar[ImportanceRecorder | None] = ContextVar("kava_importance_recorder", default=None)


@contextmanager
def recording(recorder: ImportanceRecorder) -> Iterator[ImportanceRecorder]:
    """Record importance in every attention call inside the block."""
    token = _active.set(recorder)
    try:
        yield recorder
    finally:
        _active.reset(token)


def is_recording() -> bool:
    """Whether attention calls are being recorded."""
    return _active.get() is not None


def register_backends() -> None:
    """Register `kava_sdpa`, `kava_eager` and `kava_flash_attention_2` with transformers (repeated calls are harmless)."""
    for backend in BACKENDS:
        AttentionInterface.register(PREFIX + backend, _recording_backend(backend))
        AttentionMaskInterface.register(PREFIX + backend, _sdpa_mask if backend == "sdpa" else ALL_MASK_ATTENTION_FUNCTIONS[backend])


def _sdpa_mask(*arguments: Any, **options: Any) -> Any:
    """transformers' mask for SDPA, never skipped: checking that there is no padding would synchronize with the device in every pass."""
    return ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*arguments, **options | {"allow_is_causal_skip": False})


def _recording_backend(backend: str) -> Callable[..., Any]:
    def attend(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
        # Compiled passes are never recorded (`Backbone.compile_passes`), and a context variable would break the traced graph.
        recorder = None if torch.compiler.is_compiling() else _active.get()
        if recorder is not None:
            # Selection compares scores that are close together, so they are computed in float32, whatever the dtype of the pass.
            with torch.autocast(query.device.type, enabled=False):
                options = (kwargs.get(name) for name in ("scaling", "softcap", "s_aux"))
                _record(recorder, module, query, key, attention_mask, *options)
        if backend == "sdpa" and is_short(query, key, attention_mask, kwargs):
            return attend_short(query, key, value, attention_mask, kwargs.get("scaling")).contiguous(), None
        if backend == "sdpa" and is_grouped(query, key, attention_mask, kwargs):
            attended = attend_grouped(query, key, value, attention_mask, kwargs.get("scaling"), kwargs.get("dropout", 0.0))
            return attended.contiguous(), None
        # Each architecture has its own eager attention function, in the file of its attention module.
        function = sys.modules[type(module).__module__].eager_attention_forward if backend == "eager" else ALL_ATTENTION_FUNCTIONS[backend]
        if backend == "sdpa" and attention_mask is not None and attention_mask.dtype == torch.bool:
            attention_mask = additive(attention_mask, query.dtype, -torch.inf)
        return function(module, query, key, value, attention_mask, **kwargs)

    return attend


@torch.no_grad()
def _record(
    recorder: ImportanceRecorder,
    module: Any,
    query: Float[Tensor, "B Nh S D"],
    key: Float[Tensor, "B H K D"],
    attention_mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: Float[Tensor, " Nh"] | None,
) -> None:
    batch, query_heads, queries, width = query.shape
    heads, keys = key.shape[1], key.shape[2]
    index = recorder.rows[:, None, :, None].expand(-1, query_heads, -1, width)
    rows = query.gather(2, index).view(batch, heads, query_heads // heads, -1, width)
    scores = torch.einsum("bhgad,bhkd->bhgak", rows.float(), key.float()) * (width**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    # One mask for all heads, or one for each query head (Doge).
    bias = recorder.bias(attention_mask, queries, keys)
    scores = scores + bias.view(batch, *((1, 1) if bias.shape[1] == 1 else scores.shape[1:3]), *bias.shape[2:])
    if recorder.reduction == "logits":
        scores = scores.amax(2, keepdim=True)
    if recorder.among is not None:
        # The answer directly follows the trace, so the columns of a trace shorter than the longest include answer tokens.
        others = ~recorder.among[:, None, None, None]
        probabilities = scores[..., recorder.start : recorder.stop].masked_fill(others, torch.finfo(scores.dtype).min).softmax(-1)
    elif sinks is None:
        probabilities = scores.softmax(-1)[..., recorder.start : recorder.stop]
    else:
        # Attention sink: a learned logit per head takes part in the softmax and belongs to no token.
        column = sinks.float().view(heads, -1)[None, :, :, None, None].expand(*scores.shape[:-1], 1)
        probabilities = torch.cat([scores, column], dim=-1).softmax(-1)[..., recorder.start : recorder.stop]
    per_query_head = torch.einsum("bhgac,ba->bhgc", probabilities, recorder.weight)
    reduced = per_query_head.mean(2) if recorder.reduction == "mean" else per_query_head.amax(2)
    recorder.layers[module.layer_idx] = reduced


def _row_bias(rows: Int[Tensor, "B A"], mask: Tensor | None, queries: int, keys: int) -> Float[Tensor, "B #Nh A K"]:
    """Additive bias of the answer rows, from whichever form of mask the backend was given (none, 2-D or 4-D)."""
    lowest = torch.finfo(torch.float32).min
    if mask is not None and mask.dim() == 4:
        mask = mask.expand(rows.shape[0], -1, -1, -1)
        picked = mask.gather(2, rows[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[-1]))[..., :keys]
        return torch.where(picked, 0.0, lowest) if picked.dtype == torch.bool else picked.float()
    visible = torch.arange(keys, device=rows.device) <= (rows + keys - queries)[:, :, None]
    if mask is not None:
        visible = visible & mask[:, None, :keys].bool()
    return torch.where(visible, 0.0, lowest)[:, None]
