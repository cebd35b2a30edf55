"""Fused kernels on a GPU: whole layers with adapters, and liger-kernel's and torch's norms, rotary embeddings, activations and softmax."""

import logging
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from kava.model.adapted_layer import fuse_adapted_layers
from kava.model.backbone import Backbone

ROTATE = "apply_rotary_pos_emb"


def fuse_kernels(backbone: Backbone) -> bool:
    """Use fused kernels in a model on a GPU; returns whether liger-kernel's are used.

    Does nothing if the model is not on a GPU. Llama-style layers with adapters are fused as a whole (`kava.model.adapted_layer`);
    liger-kernel's kernels serve other models, if it is installed and supports the architecture. Other models in the process are not
    affected: classes that liger-kernel replaces in transformers are restored, and the one function that cannot be replaced for a single
    model, the rotary embedding, checks the device of its tensors.
    """
    if not backbone.special_ids.is_cuda:
        return False
    fused = use_liger(backbone)
    fuse_adapted_layers(backbone)
    return fused


def use_liger(backbone: Backbone) -> bool:
    """Use liger-kernel's kernels, and torch's for norms; returns whether they are used."""
    if find_spec("liger_kernel") is None:
        return False
    causal_lm = backbone.causal_lm
    backbone.liger_softmax = True
    # It warns of each kernel for other hardware that it cannot import.
    logging.getLogger("liger_kernel").setLevel(logging.ERROR)
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN, _apply_liger_kernel_to_instance

    if causal_lm.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        return False
    names: dict[str, Any] = vars(sys.modules[type(causal_lm).__module__])
    before = dict(names)
    try:
        _apply_liger_kernel_to_instance(model=causal_lm, cross_entropy=False, fused_linear_cross_entropy=False)
        fused = names.get(ROTATE)
    finally:
        names.update(before)
    if fused is not before.get(ROTATE):
        names[ROTATE] = _RotateWhereItLies(fused, getattr(before[ROTATE], "plain", before[ROTATE]))
    for module in causal_lm.modules():
        # The attributes that liger-kernel gives a norm whose weight multiplies the normalised input, in Llama's order of casts.
        if getattr(module, "casting_mode", None) == "llama" and module.offset == 0 and "forward" in vars(module):
            module.forward = partial(_rms_norm, module, module.forward)
    return True


def _rms_norm(module: nn.Module, otherwise: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """x / rms(x) * weight by torch's kernel, whose backward pass takes half the time of liger-kernel's if the weight is frozen."""
    weight: Any = module.weight
    if weight.requires_grad or weight.dtype != x.dtype:
        return otherwise(x)
    with torch.autocast(x.device.type, enabled=False):
        output: Tensor = torch.ops.aten._fused_rms_norm(x, list(weight.shape), weight, module.variance_epsilon)[0]
    return output


class _RotateWhereItLies:
    """The fused rotary embedding for tensors on a GPU, the plain one for others. The fused one modifies its arguments in place."""

    def __init__(self, fused: Any, plain: Any) -> None:
        self.fused, self.plain = fused, plain

    def __call__(self, query: Any, *arguments: Any, **options: Any) -> Any:
        return (self.fused if query.is_cuda else self.plain)(query, *arguments, **options)
