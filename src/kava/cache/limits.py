"""How far a model can read: sliding windows and learned positions end where rotary positions go on."""

from typing import Any

from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

# Some tables of positions start with an offset of a row or two.
_SPARE_ROWS = 8


def entry_limit(causal_lm: Any) -> tuple[int, str] | None:
    """How many cache entries a sequence may have, and what sets the limit; None where nothing does."""
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
    return min(limits, default=None)


def layers_without_cache(config: Any) -> list[str]:
    """Kinds of layers, by transformers' names, that keep no key and value of their own for every token in reach."""
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    return sorted({type(layer).__name__ for layer in DynamicCache(config=config).layers if type(layer) not in plain})
