"""Fewer and larger operations on a CPU, where a small model's step spends as long on calls and copies as on arithmetic."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from kava.cache.attention import PREFIX
from kava.model.backbone import Backbone, evaluating
from kava.model.fused_layer import FusedLayer, is_llama_style
from kava.model.kava import KavaModel
from kava.model.linear_groups import group_linears

_TOLERANCE = 1e-3


def fuse_on_cpu(model: KavaModel) -> list[FusedLayer]:
    """Compute decoder layers and linear layers in few operations while the model is on a CPU. Call once, with adapters in place.

    Results stay the same up to rounding error, and modules keep their names and weights.

    Returns:
        The fused decoder layers: all, or none if the architecture does not fit or a fused pass differs from the model's own.
    """
    backbone = model.backbone
    with torch.no_grad(), evaluating(backbone):
        group_linears(model, lambda: _probe(backbone))
        layers = _fuse_layers(backbone)
    backbone.forward_passes = 0
    return layers


def _fuse_layers(backbone: Backbone) -> list[FusedLayer]:
    # Only with SDPA, and with weights in float32: a model in half precision will be moved to a GPU.
    layers = list(getattr(backbone.decoder, "layers", []))
    plain = backbone.causal_lm.config._attn_implementation == PREFIX + "sdpa" and backbone.causal_lm.dtype == torch.float32
    if not plain or backbone.special_ids.device.type != "cpu" or not all(map(is_llama_style, layers)):
        return []
    expected, fused = _probe(backbone), [FusedLayer(layer) for layer in layers]
    for one in fused:
        one.layer.forward = one
    with _always(fused):
        found = _probe(backbone)
    if not all(bool((a - b).abs().max() <= _TOLERANCE * b.abs().max()) for a, b in zip(found, expected, strict=True)):
        for one in fused:
            one.layer.forward = one.plain
        return []
    return fused


@contextmanager
def _always(fused: list[FusedLayer]) -> Iterator[None]:
    for one in fused:
        one.always = True
    try:
        yield
    finally:
        for one in fused:
            one.always = False


def _probe(backbone: Backbone) -> list[Tensor]:
    """Last-layer hidden states, keys and values of a pass over a few tokens."""
    ids = torch.arange(4, device=backbone.special_ids.device)[None]
    run = backbone.read(ids, torch.ones_like(ids, dtype=torch.bool))
    return [run.hidden, *(part for pair in run.prefix.layers for part in pair)]
