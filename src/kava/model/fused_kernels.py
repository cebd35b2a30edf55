"""Norms, rotary positions and feed-forward activations by liger-kernel on a GPU: one kernel where transformers takes several."""

import sys
from importlib.util import find_spec
from typing import Any

from kava.model.backbone import Backbone

ROTATE = "apply_rotary_pos_emb"


def fuse_kernels(backbone: Backbone) -> bool:
    """Let liger-kernel compute what it knows of a model that lies on a GPU.

    Nothing happens, and the answer is false, where liger-kernel is not installed, does not know the architecture, or the model lies
    elsewhere. Other models stay as they are: classes that liger-kernel replaces in transformers are put back, and the one function
    that cannot be replaced for a single model asks where its tensors lie.
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
    """The fused rotation for tensors on a GPU, the plain one for others. The fused one writes to what it is given."""

    def __init__(self, fused: Any, plain: Any) -> None:
        self.fused, self.plain = fused, plain

    def __call__(self, query: Any, *arguments: Any, **options: Any) -> Any:
        return (self.fused if query.is_cuda else self.plain)(query, *arguments, **options)
