"""The passes of a training step that end in a loss: the teacher reads the written trace, the student reads on from its latents, the step
decoder reads single steps, and methods without latents read everything in one pass."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kava.cache.attention import ImportanceRecorder, recording
from kava.cache.layers import KVLayers, from_dynamic_cache, stack_layers
from kava.cache.prefix import Extension, Prefix
from kava.data.collate import IGNORED, Suffix
from kava.eviction.trace import Trace, candidates
from kava.losses.token import mean_by_example
from kava.methods import WINDOW
from kava.model.backbone import Backbone


@dataclass(frozen=True)
class Reading:
    """The result of reading a suffix.

    Attributes:
        cross_entropy: mean over each example's tokens, [B].
        distillation: hidden states at the distillation token after each layer, [L, B, E]; None unless requested.
        prefix: everything read so far.
    """

    cross_entropy: Float[Tensor, " B"]
    distillation: Float[Tensor, "L B E"] | None
    prefix: Prefix


def read_whole(backbone: Backbone, ids: Int[Tensor, "B Q"], mask: Bool[Tensor, "B Q"], suffix: Suffix) -> Reading:
    """Read a left-padded question and the suffix behind it in one pass, and score the suffix's tokens."""
    run = backbone.read(ids, mask, backbone.embed(suffix.ids), suffix.mask)
    return _score(backbone, run, run.hidden[:, ids.shape[1] - 1 :], suffix)


def read_suffix(
    backbone: Backbone, prefix: Prefix, suffix: Suffix, *, lead: Float[Tensor, "B n E"] | None = None, keep_hidden: bool = False
) -> Reading:
    """Read a suffix on a prefix and score its tokens; logits are computed only where the suffix's tokens are predicted.

    Args:
        backbone: the language model.
        prefix: what came before.
        suffix: the tokens to score.
        lead: embeddings to read first, in the same pass: latents whose last pass was held back, and `<eot>`. The first label is then
            predicted from the last of them, otherwise from the prefix's last entry.
        keep_hidden: return the distillation token's hidden states.
    """
    embeds = backbone.embed(suffix.ids)
    if lead is None:
        run = backbone.extend(prefix, embeds, suffix.mask, keep_hidden=keep_hidden)
        return _score(backbone, run, torch.cat([prefix.last_hidden, run.hidden], dim=1), suffix)
    mask = torch.cat([suffix.mask.new_ones(lead.shape[:2]), suffix.mask], dim=1)
    run = backbone.extend(prefix, torch.cat([lead.to(embeds.dtype), embeds], dim=1), mask, keep_hidden=keep_hidden)
    return _score(backbone, run, run.hidden[:, lead.shape[1] - 1 :], suffix)


def _score(backbone: Backbone, run: Extension, hidden: Float[Tensor, "B S1 E"], suffix: Suffix) -> Reading:
    """Score the suffix at the end of a pass; the first of `hidden` predicts its first token."""
    batch, width = suffix.ids.shape
    example = torch.arange(batch, device=hidden.device)
    # Padding is scored like a token, with an ignored label: the computation must not depend on the amount of padding.
    states, labels, of = hidden[:, :-1].flatten(0, 1), suffix.labels.flatten(), example[:, None].expand(-1, width).flatten()
    cross_entropy = mean_by_example(backbone.token_losses(states, labels), labels, of, batch)
    distillation = None
    if run.all_hidden is not None:
        position = run.hidden.shape[1] - suffix.ids.shape[1] + suffix.distillation_position
        distillation = torch.stack([layer[example, position] for layer in run.all_hidden])
    return Reading(cross_entropy, distillation, run.prefix)


def read_trace(
    backbone: Backbone,
    question: Prefix,
    suffix: Suffix,
    seed: Tensor,
    *,
    keep_hidden: bool,
    group_reduction: str,
    importance: str = "context",
) -> tuple[Reading, Trace]:
    """The teacher pass: read `c a` and keep what eviction needs of the trace (keys, values, importance; no gradient).

    `importance` "context" or "trace": attention of the answer's tokens, normalised over the whole context or over the trace alone.
    "window": attention of the trace's last tokens, normalised over those before them, from a group's maximum logits (R-KV's own code).
    """
    recorder = _recorder(suffix, question.length, 0, group_reduction, importance)
    with recording(recorder):
        reading = read_suffix(backbone, question, suffix, keep_hidden=keep_hidden)
    return reading, _trace(reading.prefix.layers, suffix, recorder, seed)


def read_branches(
    backbone: Backbone,
    ids: Int[Tensor, "B Q"],
    mask: Bool[Tensor, "B Q"],
    tail: Float[Tensor, "B n E"],
    suffix: Suffix,
    seed: Tensor,
    *,
    keep_hidden: bool,
    group_reduction: str,
    importance: str = "context",
) -> tuple[Extension, Reading, Trace]:
    """Read the question, `tail` behind it and the teacher's `c a` behind it in one pass, in which these two do not see each other.

    Returns:
        What `backbone.read(ids, mask, tail)` and what `read_trace` return; the reading's prefix has the tail in it.
    """
    first, second = ids.shape[1], ids.shape[1] + tail.shape[1]
    of_question, of_suffix = backbone.embed(ids), backbone.embed(suffix.ids)
    embeds = torch.cat([of_question, tail.to(of_question.dtype), of_suffix], dim=1)
    before, after = torch.cat([mask, mask.new_ones(tail.shape[:2])], dim=1), mask.sum(1)
    place = torch.arange(embeds.shape[1], device=ids.device)
    apart = (place[:, None] >= second) & (place >= first) & (place < second)
    real = torch.cat([before, suffix.mask], dim=1)[:, None]
    # An entry sees itself, so that padding sees something.
    seen = (place <= place[:, None]) & ~apart & real | (place == place[:, None])
    position_ids = torch.cat([(before.long().cumsum(1) - 1).clamp(min=0), after[:, None] + place[: suffix.ids.shape[1]]], dim=1)
    recorder = _recorder(suffix, second, second, group_reduction, importance)
    with recording(recorder):
        run = backbone.read_masked(embeds, seen, position_ids, max(second, len(place) - tail.shape[1]), keep_hidden=keep_hidden)
    layers, hidden = from_dynamic_cache(run.past_key_values), run.last_hidden_state
    whole = Prefix(layers, real[:, 0], after + suffix.mask.sum(1), hidden[:, -1:])
    of_tail = Prefix(layers, before, after + tail.shape[1], hidden[:, second - 1 : second])
    read = Extension(whole, hidden, tuple(run.hidden_states[1:]) if keep_hidden else None)
    reading = _score(backbone, read, torch.cat([hidden[:, first - 1 : first], hidden[:, second:]], dim=1), suffix)
    return Extension(of_tail, hidden[:, :second]), reading, _trace(layers, suffix, recorder, seed)


def _recorder(suffix: Suffix, start: int, first_row: int, group_reduction: str, importance: str) -> ImportanceRecorder:
    """The recorder of a pass whose trace is cached from entry `start` on, and whose row `first_row` is its first token."""
    stop, mask = start + suffix.cot_width, suffix.cot_mask
    if importance == "window":
        rows = suffix.cot_length[:, None] - 1 - torch.arange(WINDOW, device=mask.device)
        return ImportanceRecorder(first_row + rows.clamp(min=0), rows >= 0, start, stop, "logits", candidates(mask))
    among = mask if importance == "trace" else None
    return ImportanceRecorder(first_row + suffix.answer_positions, suffix.answer_mask, start, stop, group_reduction, among)


@torch.no_grad()
def _trace(layers: KVLayers, suffix: Suffix, recorder: ImportanceRecorder, seed: Tensor) -> Trace:
    """The trace of a pass that was recorded."""
    mask = suffix.cot_mask
    seen = candidates(mask) if recorder.reduction == "logits" else mask
    keys, values = stack_layers(layers, recorder.start, recorder.stop)
    return Trace(keys, values, recorder.stacked() * seen[None, :, None], mask, seed)


def read_steps(backbone: Backbone, latents: Float[Tensor, "B M E"], suffix: Suffix, steps: Int[Tensor, "B MC"]) -> Float[Tensor, "B C"]:
    """The step decoder's pass: cross-entropy of each trace token, predicted only from its step's latents and earlier tokens.

    All steps share one pass. The latents and tokens of a step do not attend to other steps, and their positions start at 0.

    Args:
        backbone: the decoder.
        latents: input embeddings of the latents.
        suffix: the teacher's, which holds the trace.
        steps: see `kava.data.collate.Batch.steps`.
    """
    width, entries = suffix.cot_width, steps.shape[1]
    ids, of = suffix.ids[:, :width], steps[:, -width:] if width else steps[:, :0]
    embeds = backbone.embed(ids)
    place = torch.arange(entries, device=steps.device)
    before = (steps[:, :, None] == steps[:, None, :]) & (place < place[:, None])
    mask = before | (place == place[:, None])
    hidden = backbone.read_masked(torch.cat([latents.to(embeds.dtype), embeds], dim=1), mask, before.sum(-1), entries).last_hidden_state
    # A token is predicted from the entry before it in its step; the first one from the last latent.
    last = torch.where(before, place, 0).amax(-1)[:, entries - width :, None]
    states = hidden.gather(1, last.expand(-1, -1, hidden.shape[-1]))
    labels = ids.masked_fill(of < 0, IGNORED)
    return backbone.token_losses(states.flatten(0, 1), labels.flatten()).view(ids.shape)
