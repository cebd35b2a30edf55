"""Images of the cosine similarity between student and teacher caches, which training sends to its trackers."""

from collections.abc import Sequence
from typing import Any

from kava.config import Config
from kava.data.example import Example
from kava.explain.explain import mean_similarity
from kava.explain.figures import similarity_figure
from kava.generate import Reasoner


def cache_pictures(reasoner: Reasoner, config: Config, examples: Sequence[Example]) -> dict[str, Any]:
    """Return images `kv_similarity/keys` and `kv_similarity/values`, [height, width, 3] uint8; empty if there is nothing to compare."""
    method = reasoner.model.method
    similarity = mean_similarity(reasoner, config, examples) if method.uses_latents and method.teacher else None
    if similarity is None:
        return {}
    layers = {"keys": similarity.keys, "values": similarity.values}
    return {f"kv_similarity/{what}": _pixels(similarity_figure(cosines, what)) for what, cosines in layers.items()}


def _pixels(figure: Any) -> Any:
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
