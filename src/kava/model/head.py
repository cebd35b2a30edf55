"""From last-layer hidden states to next-token logits, and to the cross-entropy of labelled tokens."""

from typing import Any

import torch
from jaxtyping import Float, Int
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn

from kava.losses.fused import fused_token_losses
from kava.losses.sliced import sliced_token_losses
from kava.losses.token import token_losses
from kava.runtime.device import runs_as_on_gpu


def next_token_logits(causal_lm: Any, special_ids: Int[Tensor, " 3"], hidden: Float[Tensor, "*N E"]) -> Float[Tensor, "*N V"]:
    """Next-token logits, equal to those of the model's own forward.

    Args:
        causal_lm: the transformers model, adapters in place.
        special_ids: ids of the new tokens, whose columns use their trained rows where embeddings are tied.
        hidden: last-layer states.
    """
    head = causal_lm.get_output_embeddings()
    if isinstance(head, TrainableTokensWrapper):
        base = head.original_module(hidden)
        rows = new_token_rows(head)
        logits = base.index_copy(-1, special_ids, nn.functional.linear(hidden, rows.to(hidden.dtype)).to(base.dtype))
    else:
        logits = head(hidden)
    config = causal_lm.config.get_text_config()
    logits = logits * getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def next_token_losses(
    causal_lm: Any, special_ids: Int[Tensor, " 3"], hidden: Float[Tensor, "N E"], labels: Int[Tensor, " N"], *, liger: bool = False
) -> Float[Tensor, " N"]:
    """Cross-entropy of each token: in slices on a GPU with a plain frozen head (`liger`: by its softmax), otherwise from all logits."""
    head, config = causal_lm.get_output_embeddings(), causal_lm.config.get_text_config()
    trained = isinstance(head, TrainableTokensWrapper)
    linear = head.original_module if trained else head
    changed = any(getattr(config, name, None) is not None for name in ("logit_scale", "logits_scaling", "final_logit_softcapping"))
    if not (hidden.is_cuda or runs_as_on_gpu()) or changed or linear.bias is not None or linear.weight.requires_grad:
        return token_losses(next_token_logits(causal_lm, special_ids, hidden), labels)
    rows, ids = (new_token_rows(head), special_ids) if trained else (hidden.new_empty(0, hidden.shape[1]), special_ids[:0])
    return sliced_token_losses(hidden, linear.weight, labels, rows, ids, liger=liger)


def liger_losses(
    causal_lm: Any, special_ids: Int[Tensor, " 3"], hidden: Float[Tensor, "N E"], labels: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Cross-entropy of each token by liger-kernel (`system.fused_cross_entropy`)."""
    head, config = causal_lm.get_output_embeddings(), causal_lm.config.get_text_config()
    scale = getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
    if isinstance(head, TrainableTokensWrapper):
        linear = head.original_module
        weight = linear.weight.index_copy(0, special_ids, new_token_rows(head).to(linear.weight.dtype))
    else:
        linear, weight = head, head.weight
    bias = None if linear.bias is None else linear.bias * scale
    return fused_token_losses(hidden * scale, weight, bias, labels, getattr(config, "final_logit_softcapping", None))


def new_token_rows(wrapper: Any) -> Float[Tensor, "3 E"]:
    """The new tokens' trained rows, from peft's wrapper of the embedding or of a head tied to it."""
    adapter = wrapper.token_adapter
    rows: Tensor = adapter.trainable_tokens_delta[wrapper.active_adapters[0]]
    return rows
