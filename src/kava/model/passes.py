"""The two readers of a training step: the teacher reads the written trace, the student reads its latents."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kava.cache.attention import ImportanceRecorder, recording
from kava.cache.layers import stack_layers
from kava.data.collate import Suffix
from kava.eviction.trace import Trace
from kava.losses.token import mean_by_example, token_cross_entropy
from kava.model.backbone import Backbone, Prefix


@dataclass(frozen=True)
class Reading:
    """What reading a suffix gives.

    Attributes:
        cross_entropy: mean over each example's tokens, [B].
        distillation: hidden states at the distillation token after each layer, [L, B, E], where asked for.
        prefix: everything read so far.
    """

    cross_entropy: Float[Tensor, " B"]
    distillation: Float[Tensor, "L B E"] | None
    prefix: Prefix


def read_suffix(backbone: Backbone, prefix: Prefix, suffix: Suffix, *, lead: Tensor | None = None, keep_hidden: bool = False) -> Reading:
    """Read a suffix on a prefix and score its tokens; logits are computed where there is a label, nowhere else.

    Args:
        backbone: the language model.
        prefix: what came before.
        suffix: the tokens to score.
        lead: embedding of a token to read first (`<eot>`), [E]. The first label is then predicted from it, otherwise
            from the prefix's last entry.
        keep_hidden: return the distillation token's hidden states.
    """
    embeds = backbone.embed(suffix.ids)
    mask = suffix.mask
    if lead is not None:
        embeds = torch.cat([lead.to(embeds.dtype).expand(len(embeds), 1, -1), embeds], dim=1)
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
    run = backbone.extend(prefix, embeds, mask, keep_hidden=keep_hidden)
    hidden = run.hidden if lead is not None else torch.cat([prefix.last_hidden, run.hidden], dim=1)
    states = hidden.flatten(0, 1)[suffix.rows]
    if backbone.fused:
        cross_entropy = mean_by_example(backbone.fused_losses(states, suffix.labels), suffix.example, len(embeds))
    else:
        cross_entropy = token_cross_entropy(backbone.logits(states), suffix.labels, suffix.example, len(embeds))
    distillation = None
    if run.all_hidden is not None:
        position = suffix.distillation_position + (0 if lead is None else 1)
        example = torch.arange(len(embeds), device=embeds.device)
        distillation = torch.stack([layer[example, position] for layer in run.all_hidden])
    return Reading(cross_entropy, distillation, run.prefix)


def read_trace(
    backbone: Backbone, question: Prefix, suffix: Suffix, seed: Tensor, *, keep_hidden: bool, group_reduction: str
) -> tuple[Reading, Trace]:
    """The teacher pass: read `c a` and keep what eviction needs of the trace (keys, values, importance; no gradient)."""
    start, stop = question.length, question.length + suffix.cot_width
    recorder = ImportanceRecorder(suffix.answer_positions, suffix.answer_mask, start, stop, group_reduction)
    with recording(recorder):
        reading = read_suffix(backbone, question, suffix, keep_hidden=keep_hidden)
    mask = torch.arange(suffix.cot_width, device=suffix.ids.device) < suffix.cot_length[:, None]
    with torch.no_grad():
        keys, values = stack_layers(reading.prefix.layers, start, stop)
        importance = recorder.stacked() * mask[None, :, None]
    return reading, Trace(keys.detach(), values.detach(), importance, mask, seed)
