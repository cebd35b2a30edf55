"""Limits on sequence length: sliding windows and learned positions have one, most rotary embeddings have none.

Two kinds of rotary embeddings have one too: "longrope" and "dynamic" change all frequencies of a pass that reaches beyond the original
length, while cached keys keep the old ones, so an answer would depend on its cache and on its batch.
"""

from typing import Any

from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from kava.errors import UserError

# Some tables of learned positions start with an offset of one or two rows.
_SPARE_ROWS = 8
_ROTARY = "rotary positions, beyond which all positions of a pass change and cached keys do not"


def entry_limit(causal_lm: Any) -> tuple[int, str] | None:
    """The largest number of cache entries of a sequence, and what limits it; None if there is no limit."""
    config = causal_lm.config.get_text_config()
    limits = [
        (int(layer.sliding_window), "the sliding window of its attention")
        for layer in DynamicCache(config=config).layers
        if isinstance(layer, DynamicSlidingWindowLayer)
    ]
    positions = getattr(config, "max_position_embeddings", None)
    words = causal_lm.get_input_embeddings()
    tables = [module for module in causal_lm.base_model.modules() if isinstance(module, nn.Embedding) and module is not words]
    if positions and any(positions <= table.num_embeddings <= positions + _SPARE_ROWS for table in tables):
        limits.append((int(positions), "its table of learned positions"))
    return min([*limits, *_rotary_limits(causal_lm)], default=None)


def check_length(limit: tuple[int, str] | None, entries: int) -> None:
    """Check a sequence of this many cache entries against `entry_limit`.

    Raises:
        UserError: it is longer.
    """
    if limit is not None and entries > limit[0]:
        raise UserError(
            f"a sequence of {entries} entries (question, thought, answer) is longer than this model reaches: {limit[0]}, by {limit[1]}; "
            "lower dataset.max_length, latent.num_tokens or evaluation.max_new_tokens, or choose another model"
        )


def _rotary_limits(causal_lm: Any) -> list[tuple[int, str]]:
    parameters = getattr(causal_lm.config.get_text_config(), "rope_parameters", None) or {}
    limits = []
    for module in causal_lm.base_model.modules():
        kinds = getattr(module, "rope_type", None)
        # One rotary type, or one per layer type.
        for layer_type, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)]:
            if isinstance(kind, str) and kind == "longrope":
                own = parameters if layer_type is None else parameters[layer_type]
                limits.append((int(own["original_max_position_embeddings"]), f"its {kind} {_ROTARY}"))
            elif isinstance(kind, str) and "dynamic" in kind:
                limits.append((int(module.original_max_seq_len), f"its {kind} {_ROTARY}"))
    return limits


def layers_without_cache(config: Any) -> list[str]:
    """transformers' names of the cache layers that do not keep a key and a value for every token (or every token in the window)."""
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    return sorted({type(layer).__name__ for layer in DynamicCache(config=config).layers if type(layer) not in plain})
