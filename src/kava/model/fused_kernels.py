"""liger-kernel's norms, rotary embeddings and feed-forward activations on a GPU: one kernel where transformers runs several."""

import sys
from importlib.util import find_spec
from typing import Any

from kava.model.backbone import Backbone

ROTATE = "apply_rotary_pos_emb"


def fuse_kernels(backbone: Backbone) -> bool:
    """Use liger-kernel's kernels in a model on a GPU; returns whether they are used.

    Does nothing and returns False if liger-kernel is not installed or does not support the architecture, or if the model is not on a
    GPU. Other models are not affected: classes that liger-kernel replaces in transformers are restored, and the one function that
    cannot be replaced for a single model, the rotary embedding, checks the device of its tensors.
    """
    causal_lm = backbone.causal_lm
    if not backbone.special_ids.is_cuda or find_spec("liger_kernel") is None:
        return False
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
    return True


class _RotateWhereItLies:
    """The fused rotary embedding for tensors on a GPU, the plain one for others. The fused one modifies its arguments in place."""

    def __init__(self, fused: Any, plain: Any) -> None:
        self.fused, self.plain = fused, plain

    def __call__(self, query: Any, *arguments: Any, **options: Any) -> Any:
        return (self.fused if query.is_cuda else self.plain)(query, *arguments, **options)
