"""Norms and feed-forward activations by liger-kernel on a GPU: one kernel where transformers' modules take several, and less kept."""

import sys
from importlib.util import find_spec
from typing import Any

from kava.model.backbone import Backbone


def fuse_kernels(backbone: Backbone) -> bool:
    """Let liger-kernel compute norms and gated activations of a model that lies on a GPU.

    Nothing happens, and the answer is false, where liger-kernel is not installed, does not know the architecture, or the model lies
    elsewhere. Only this model changes: classes that liger-kernel replaces in transformers are put back.
    """
    causal_lm = backbone.causal_lm
    if not backbone.special_ids.is_cuda or find_spec("liger_kernel") is None:
        return False
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN, _apply_liger_kernel_to_instance

    if causal_lm.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        return False
    module: Any = sys.modules[type(causal_lm).__module__]
    before = dict(vars(module))
    try:
        # Rotary positions stay transformers' own: `kava.cache.rope` runs them backwards, and liger's work in place.
        _apply_liger_kernel_to_instance(model=causal_lm, rope=False, cross_entropy=False, fused_linear_cross_entropy=False)
    finally:
        vars(module).update(before)
    return True
