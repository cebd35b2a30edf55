"""Check whether a language model can reason in latents: first its transformers class and configuration, then its behaviour.

Nothing depends on a model's name: transformers declares whether a class keeps recurrent state, uses the attention interface
and caches every token, and passes over a few tokens show the rest.
"""

from typing import Any

import torch
from torch import Tensor

from kava.cache.attention import ImportanceRecorder, recording
from kava.cache.layers import stack_layers
from kava.cache.limits import layers_without_cache
from kava.cache.prefix import Prefix
from kava.cache.rope import unrotate
from kava.errors import UserError, reason_of
from kava.model.backbone import Backbone, evaluating

_PROBE_TOKENS = 4
_SHIFT = 3
# Relative, and more than rounding in half precision.
_TOLERANCE = 0.1
_CURE = "choose a decoder-only model with a plain KV cache, such as Llama, Qwen, Mistral, Gemma, Phi or GPT-2"


def check_architecture(base: str, config: Any) -> None:
    """Reject, before any weight is loaded, a model class whose declared cache or attention does not support latent reasoning.

    Args:
        base: name of the model, for messages.
        config: its transformers configuration.

    Raises:
        UserError: naming the reason.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    reason = None
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        reason = _declared_obstacle(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config)
    elif not hasattr(config, "auto_map"):
        reason = "transformers has no causal language model of this architecture"
    if reason:
        raise UserError(f"model '{base}' ({config.model_type}) cannot reason in latents: {reason}; {_CURE}")


@torch.no_grad()
def check_behaviour(base: str, backbone: Backbone, *, unrotates: bool = False) -> None:
    """Run a few tokens and check that every layer caches every token, exposes its attention, and continues from its cache.

    Args:
        base: name of the model, for messages.
        backbone: the model to check.
        unrotates: also check that the rotary embedding of keys can be undone (`loss.kv_rope: pre`).

    Raises:
        UserError: naming what is missing.
    """
    with evaluating(backbone):
        reason = _shown_obstacle(backbone)
        unfit = unrotates and not reason and not can_unrotate(backbone)
    backbone.forward_passes = 0
    if reason:
        raise UserError(f"model '{base}' cannot reason in latents: {reason}; {_CURE}")
    if unfit:
        raise UserError(f"loss.kv_rope is pre, but the rotary embedding of model '{base}' cannot be undone; set it to post")


def _declared_obstacle(model_class: Any, config: Any) -> str | None:
    if model_class._is_stateful:
        return "it keeps a recurrent state instead of a key and a value for every token, so its cache cannot be compressed or truncated"
    if config.is_encoder_decoder:
        return "it is an encoder-decoder"
    if odd := layers_without_cache(config.get_text_config()):
        return f"not every layer keeps a key and a value for every token ({', '.join(odd)})"
    if not model_class._supports_attention_backend:
        return "its attention does not go through transformers' attention interface, which kava needs to record importance"
    return None


def _shown_obstacle(backbone: Backbone) -> str | None:
    ids = torch.arange(_PROBE_TOKENS, device=backbone.special_ids.device)[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    recorder = ImportanceRecorder(ids[:, -1:], mask[:, -1:], 0, _PROBE_TOKENS)
    try:
        with recording(recorder):
            whole = backbone.read(ids, mask)
        start = backbone.read(ids[:, :-1], mask[:, :-1]).prefix
        behind = backbone.extend(start, backbone.embed(ids[:, -1:]), keep_hidden=True)
        last = behind.hidden
        own_logits = backbone.causal_lm(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
        logits = backbone.logits(whole.hidden)
    except Exception as error:  # the forward pass of an unknown architecture may raise anything
        return f"a pass that keeps a KV cache fails ({type(error).__name__}: {reason_of(error)})"
    assert behind.all_hidden is not None
    widths = sorted({backbone.embed(ids).shape[-1], *(hidden.shape[-1] for hidden in behind.all_hidden)})
    if len(widths) > 1:
        return (
            f"its embeddings and the hidden states of its layers differ in width ({' and '.join(map(str, widths))}), but a latent token is "
            "a hidden state that enters as an embedding"
        )
    layers = whole.prefix.layers
    if len(layers) != backbone.num_layers or any(keys.dim() != 4 or keys.shape[2] != _PROBE_TOKENS for keys, _ in layers):
        return f"its cache does not hold every token in each of its {backbone.num_layers} layers"
    if any(keys.shape != values.shape for keys, values in layers):
        return "its cache keeps something compressed (multi-head latent attention) in place of a key and a value per head"
    if len({keys.shape for keys, _ in layers}) > 1:
        return "its layers cache keys of different sizes"
    if len(recorder.layers) != backbone.num_layers:
        return f"only {len(recorder.layers)} of its {backbone.num_layers} layers expose their attention"
    shown, kept = recorder.layers[0].shape[1], layers[0][0].shape[1]
    if shown != kept:
        return f"its attention uses {shown} heads of keys but its cache keeps {kept}, so importance cannot be assigned to cache entries"
    if not (difference := _relative(last - whole.hidden[:, -1:], whole.hidden)) < _TOLERANCE:
        return f"continuing from its cache differs by {difference:.0%} from a full forward pass"
    if not (difference := _relative(logits - own_logits, own_logits)) < _TOLERANCE:
        return f"its logits differ by {difference:.0%} from its last hidden states through its output head: something lies between them"
    return None


def _relative(difference: Tensor, reference: Tensor) -> float:
    return float(difference.abs().max() / reference.abs().max().clamp(min=1e-6))


@torch.no_grad()
def can_unrotate(backbone: Backbone) -> bool:
    """Whether `unrotate` works: rotary attention depends on distances only, so shifted tokens must have the same unrotated keys."""
    if getattr(backbone.decoder, "rotary_emb", None) is None:
        return True
    try:
        here, further = _unrotated_keys(backbone, 0), _unrotated_keys(backbone, _SHIFT)
    except (AttributeError, TypeError, KeyError, RuntimeError):
        return False
    return bool((here - further).abs().max() <= 0.02 * here.abs().max())


def _unrotated_keys(backbone: Backbone, first: int) -> Tensor:
    """Keys of a few tokens that start at position `first`, with their rotation undone, [L, 1, H, n, D]."""
    device = backbone.special_ids.device
    embeds = backbone.embed(torch.arange(_PROBE_TOKENS, device=device)[None])
    nothing = torch.ones(1, 0, dtype=torch.bool, device=device)
    prefix = Prefix((), nothing, torch.tensor([first], device=device), embeds[:, :1])
    keys, _ = stack_layers(backbone.extend(prefix, embeds).prefix.layers, 0, _PROBE_TOKENS)
    positions = torch.arange(first, first + _PROBE_TOKENS, device=device).expand(keys.shape[:4])
    return unrotate(backbone.decoder, keys, positions).float()
