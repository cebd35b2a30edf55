"""Plain implementations of the training step: a reference for the tests and slow baselines for the benchmark.

`naive_losses`: teacher and student each run a full pass over their sequence with eager attention, all attention weights kept and
logits at every position; every Jacobi iteration runs the question again, as the earlier public reproduction does.
`pccot_losses`: the question is cached for the iterations, as in PCCoT (arXiv 2506.18582), but teacher and student still run
separately, with logits at every position.

Both take the padded batch and the weights of the optimized step and use plain forward passes of the causal language model, with
embeddings and logits through peft's own wrappers. They share only the eviction and the final loss functions with the optimized step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from kava.cache.layers import KVLayers, from_dynamic_cache, slice_layers, stack_layers, to_dynamic_cache
from kava.cache.rope import unrotate
from kava.data.collate import IGNORED, Batch, Suffix
from kava.eviction import Trace, compress
from kava.losses.distance import at_least_float32
from kava.losses.hidden import codi_loss
from kava.losses.kv import kv_loss
from kava.losses.total import LossTerms
from kava.model.kava import KavaModel


@dataclass(frozen=True)
class Reading:
    """Result of one forward pass that ends in a suffix.

    Attributes:
        cross_entropy: mean over each example's suffix tokens, [B].
        hidden: last-layer hidden states of the pass, [B, n, E].
        distillation: hidden states at the distillation token after each layer, [L, B, E].
        layers: the KV cache after the pass.
        attentions: attention weights of each layer, [B, Nh, n, S], if requested.
    """

    cross_entropy: Float[Tensor, " B"]
    hidden: Float[Tensor, "B n E"]
    distillation: Float[Tensor, "L B E"]
    layers: KVLayers
    attentions: tuple[Tensor, ...] | None


def naive_losses(model: KavaModel, batch: Batch) -> LossTerms:
    """Compute the losses of a batch with full passes only: nothing is shared, cached or skipped."""
    with attention(model, "eager"):
        student = read_student(model, batch, latent_inputs(model, batch))
        teacher = _read_full(model, batch, batch.teacher, None) if batch.teacher is not None else None
        return _terms(model, batch, student, teacher)


def pccot_losses(model: KavaModel, batch: Batch) -> LossTerms:
    """Compute the losses of a batch with the question cached for the latents only; attention is eager only if its weights are needed."""
    with attention(model, "sdpa"):
        latent = model.method.uses_latents
        student = _read_cached(model, batch) if latent else _read_full(model, batch, batch.student, None, attentions=False)
        if batch.teacher is None:
            return _terms(model, batch, student, None)
        if not model.method.kv:
            return _terms(model, batch, student, _read_full(model, batch, batch.teacher, None, attentions=False))
    with attention(model, "eager"):
        return _terms(model, batch, student, _read_full(model, batch, batch.teacher, None))


@contextmanager
def attention(model: KavaModel, backend: str) -> Iterator[None]:
    """Use the attention backend of transformers with that name inside the block, instead of ours."""
    causal_lm = model.backbone.causal_lm
    before = causal_lm.config._attn_implementation
    causal_lm.set_attn_implementation(backend)
    try:
        yield
    finally:
        causal_lm.set_attn_implementation(before)


def latent_inputs(model: KavaModel, batch: Batch, num_iterations: int | None = None) -> Float[Tensor, "B M E"] | None:
    """Return the input embeddings of the latents after `num_iterations` (default: T) iterations, each a full pass with the question."""
    if not model.method.uses_latents:
        return None
    bot, _, latent = _special(model, batch)
    count = batch.num_latents
    sequential = model.method.latents == "sequential"
    inputs = bot[:, :0] if sequential else latent.expand(-1, count, -1)
    iterations = model.settings.num_iterations if num_iterations is None else num_iterations
    for _ in range(count if sequential else iterations):
        embeds, mask = _question(model, batch, torch.cat([bot, inputs.to(bot.dtype)], dim=1))
        hidden = _forward(model, embeds, mask).hidden_states[-1]
        if sequential:
            inputs = torch.cat([inputs, model.projection(hidden[:, -1:])], dim=1)
        else:
            inputs = model.projection(hidden[:, -(count + 1) : -1])
    return inputs


def read_student(model: KavaModel, batch: Batch, latents: Float[Tensor, "B M E"] | None) -> Reading:
    """Run one full pass over `q <bot> z <eot> a`, or over the question and the student's text if there are no latents."""
    if latents is None:
        return _read_full(model, batch, batch.student, None)
    bot, eot, _ = _special(model, batch)
    return _read_full(model, batch, batch.student, torch.cat([bot, latents.to(bot.dtype), eot], dim=1))


def importance(attentions: tuple[Tensor, ...], batch: Batch, heads: int, reduction: str, over: str) -> Float[Tensor, "L B H C"]:
    """Return the mean attention of each example's answer tokens to its CoT tokens, from the teacher's full matrices [B, Nh, S, S]."""
    teacher, first = batch.teacher, batch.question_ids.shape[1]
    assert teacher is not None
    result = attentions[0].new_zeros(len(attentions), len(batch), heads, teacher.cot_width)
    for b in range(len(batch)):
        count, answers = int(teacher.cot_length[b]), int(teacher.answer_mask[b].sum())
        stop = first + count
        for layer, attention in enumerate(attentions):
            rows = attention[b, :, stop : stop + answers, first:stop]
            if over == "trace":
                rows = rows / rows.sum(-1, keepdim=True)
            groups = rows.mean(1).unflatten(0, (heads, -1))
            result[layer, b, :, :count] = groups.amax(1) if reduction == "max" else groups.mean(1)
    return result.detach()


def _read_cached(model: KavaModel, batch: Batch) -> Reading:
    """Run the student as PCCoT does: `q <bot>` is cached, every iteration runs all M latents, and the answer follows in its own pass."""
    bot, eot, latent = _special(model, batch)
    sequential, count = model.method.latents == "sequential", batch.num_latents
    embeds, mask = _question(model, batch, bot if sequential else torch.cat([bot, latent.expand(-1, count, -1)], dim=1))
    first = embeds.shape[1] if sequential else embeds.shape[1] - count
    output = _forward(model, embeds, mask)
    cache, hidden = from_dynamic_cache(output.past_key_values), output.hidden_states[-1][:, first - 1 :]
    for _ in range(count if sequential else model.settings.num_iterations):
        inputs = model.projection(hidden[:, -1:] if sequential else hidden[:, :-1]).to(bot.dtype)
        before = cache if sequential else slice_layers(cache, 0, first)
        mask = _with_ones(mask[:, : before[0][0].shape[2]], inputs)
        output = _forward(model, inputs, mask, before)
        cache, hidden = from_dynamic_cache(output.past_key_values), torch.cat([hidden[:, :1], output.hidden_states[-1]], dim=1)
    embeds = torch.cat([eot, _embed(model, batch.student.ids)], dim=1)
    full_mask = torch.cat([_with_ones(mask, eot), batch.student.mask], dim=1)
    return _read(model, embeds, full_mask, batch.student, cache, attentions=False)


def _read_full(model: KavaModel, batch: Batch, suffix: Suffix, between: Tensor | None, *, attentions: bool = True) -> Reading:
    embeds, mask = _question(model, batch, between)
    embeds = torch.cat([embeds, _embed(model, suffix.ids)], dim=1)
    return _read(model, embeds, torch.cat([mask, suffix.mask], dim=1), suffix, None, attentions=attentions)


def _read(model: KavaModel, embeds: Tensor, mask: Tensor, suffix: Suffix, cache: KVLayers | None, *, attentions: bool) -> Reading:
    output = _forward(model, embeds, mask, cache, attentions=attentions)
    start = embeds.shape[1] - suffix.ids.shape[1]
    labels = torch.cat([suffix.ids.new_full((len(suffix.ids), start), IGNORED), suffix.labels], dim=1)[:, 1:]
    logits = at_least_float32(output.logits[:, :-1])
    losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none").view(labels.shape)
    position = start + suffix.distillation_position
    examples = torch.arange(len(embeds), device=embeds.device)
    return Reading(
        cross_entropy=losses.sum(1) / (labels != IGNORED).sum(1),
        hidden=output.hidden_states[-1],
        distillation=torch.stack([layer[examples, position] for layer in output.hidden_states[1:]]),
        layers=from_dynamic_cache(output.past_key_values),
        attentions=output.attentions if attentions else None,
    )


def _forward(model: KavaModel, embeds: Tensor, mask: Tensor, cache: KVLayers | None = None, *, attentions: bool = False) -> Any:
    """Run one forward pass of the causal language model; `mask` covers cache and embeds."""
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    return model.backbone.model(
        inputs_embeds=embeds,
        attention_mask=mask.long(),
        position_ids=positions[:, -embeds.shape[1] :],
        past_key_values=to_dynamic_cache(cache or ()),
        use_cache=True,
        output_hidden_states=True,
        output_attentions=attentions,
    )


def _terms(model: KavaModel, batch: Batch, student: Reading, teacher: Reading | None) -> LossTerms:
    if teacher is None:
        return {"student_ce": student.cross_entropy}
    terms, settings = {"student_ce": student.cross_entropy, "teacher_ce": teacher.cross_entropy}, model.settings
    if model.method.codi:
        terms["codi"] = codi_loss(teacher.distillation, student.distillation, settings.codi_loss_type, settings.layerwise_std)
    if model.method.step_decoder:
        latents = latent_inputs(model, batch)
        assert latents is not None
        terms["step_ce"] = torch.stack([_decoded_steps(model, batch, row, latents[row]) for row in range(len(batch))])
    if model.method.kv:
        counts = range(1, min(settings.num_iterations, batch.num_latents)) if settings.kv_iterations == "all" else ()
        students = [*(read_student(model, batch, latent_inputs(model, batch, count)) for count in counts), student]
        terms["kv"] = torch.stack([_match(model, batch, each, teacher) for each in students]).mean(0)
    return terms


def _decoded_steps(model: KavaModel, batch: Batch, row: int, latents: Float[Tensor, "M E"]) -> Float[Tensor, ""]:
    """Return the step loss of one example: each step is decoded in its own pass, from its latents and its tokens."""
    assert batch.teacher is not None
    assert batch.steps is not None
    of_latents, of_tokens = batch.steps[row].split([len(latents), batch.teacher.cot_width])
    found = []
    for step in range(int(of_tokens.max()) + 1 if len(of_tokens) else 0):
        ids = batch.teacher.ids[row, : batch.teacher.cot_width][of_tokens == step]
        embeds = torch.cat([latents[of_latents == step], _embed(model, ids)])[None]
        logits = _forward(model, embeds, torch.ones_like(embeds[..., 0], dtype=torch.bool)).logits[0, -len(ids) - 1 : -1]
        found.append(cross_entropy(at_least_float32(logits), ids))
    return torch.stack(found).mean() if found else latents.new_zeros(())


def _match(model: KavaModel, batch: Batch, student: Reading, teacher: Reading) -> Float[Tensor, " B"]:
    """Compute L_KV: compress the teacher's trace, then compare it with the latents slot by slot."""
    assert batch.teacher is not None
    assert teacher.attentions is not None
    settings, first, width = model.settings, batch.question_ids.shape[1], batch.teacher.cot_width
    assert settings.eviction != "rkv_original", "its importance is made of logits, which full matrices of probabilities do not show"
    heads = teacher.layers[0][0].shape[1]
    weights = importance(teacher.attentions, batch, heads, settings.group_reduction, settings.importance)
    trace_keys, trace_values = stack_layers(teacher.layers, first, first + width)
    mask = torch.arange(width, device=weights.device) < batch.teacher.cot_length[:, None]
    trace = Trace(trace_keys.detach(), trace_values.detach(), weights, mask, batch.example_seed)
    target = compress(trace, settings.eviction, batch.num_latents, settings.rkv_lambda, settings.eviction_seed, settings.share)
    keys, values = stack_layers(student.layers, first + 1, first + 1 + batch.num_latents)
    target_keys = target.keys
    if settings.kv_rope == "pre":
        question_length = batch.question_mask.sum(1)[None, :, None, None]
        slots = torch.arange(batch.num_latents, device=keys.device).expand(keys.shape[:-1])
        keys = unrotate(model.backbone.decoder, keys, question_length + 1 + slots)
        target_keys = unrotate(model.backbone.decoder, target_keys, question_length + target.indices)
    return kv_loss(
        target_keys, target.values, keys, values, target.slot_mask,
        settings.kv_loss_type, settings.layerwise_std, settings.kv_parts,
    )  # fmt: skip


def _embed(model: KavaModel, ids: Tensor) -> Tensor:
    embedded: Tensor = model.backbone.causal_lm.get_input_embeddings()(ids)
    return embedded


def _special(model: KavaModel, batch: Batch) -> tuple[Tensor, ...]:
    """Return the embeddings of `<bot>`, `<eot>` and `<latent>`, each [B, 1, E]."""
    return _embed(model, model.backbone.special_ids.expand(len(batch), -1)).split(1, dim=1)


def _question(model: KavaModel, batch: Batch, tail: Tensor | None) -> tuple[Float[Tensor, "B S E"], Bool[Tensor, "B S"]]:
    embeds = _embed(model, batch.question_ids)
    if tail is None:
        return embeds, batch.question_mask
    return torch.cat([embeds, tail], dim=1), _with_ones(batch.question_mask, tail)


def _with_ones(mask: Tensor, tail: Tensor) -> Bool[Tensor, "B S"]:
    return torch.cat([mask, mask.new_ones(tail.shape[:2])], dim=1)
