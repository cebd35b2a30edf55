"""Properties that every architecture must have, as functions: the tests of single parts and the matrix of architectures call them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytest import MonkeyPatch
from torch import Tensor

from helpers.tiny import (
    BACKENDS,
    LAYERS,
    MINI,
    PROMPT,
    assert_close,
    gradients,
    lora_config,
    make_batch,
    make_examples,
    mini_builder,
    mini_examples,
    mini_model,
    tiny_lm,
    tiny_model,
)
from kava.checkpoint import Trained, load_checkpoint, save_checkpoint
from kava.data.collate import Batch, build_collator
from kava.data.mini.tokenizer import build_mini_tokenizer
from kava.eviction import Compressed
from kava.generate import Reasoner
from kava.losses.total import LossTerms, combine
from kava.model import head as language_head
from kava.model.build import build_model
from kava.model.kava import KavaModel
from kava.model.passes import read_trace
from kava.model.tokenizer import load_tokenizer
from kava.runtime.device import runs_as_on_gpu
from kava.tools.bench.naive import attention, naive_losses

QUESTIONS = [example.question for example in mini_examples(3)]
TOKENS, M, T = 6, 4, 2
Step = Callable[[KavaModel, Batch], LossTerms]


def compare(model: KavaModel, batch: Batch, naive: Step = naive_losses, tolerance: float = 1e-5) -> None:
    """Every term, and the gradient of every trainable parameter."""
    settings = model.settings
    expected_terms = naive(model, batch)
    expected = gradients(model, combine(expected_terms, settings.weights).mean())
    output = model(batch)
    actual = gradients(model, output["loss"].mean())
    assert output["terms"].keys() == expected_terms.keys()
    for name, value in expected_terms.items():
        assert_close(output["terms"][name], value, tolerance, what=name)
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    assert scale > 0
    for name, gradient in expected.items():
        # Some gradients are nothing but rounding: GPT-2's key bias has none in theory.
        size = max(float(gradient.abs().max()), 1e-2 * scale)
        assert float((actual[name] - gradient).abs().max()) <= tolerance * size, name


def check_backends(kind: str, method: str) -> None:
    """SDPA and eager attention give the same losses and gradients (short sequences go to a kernel of ours unless `as_on_gpu`)."""
    results = []
    for attn in BACKENDS:
        model = tiny_model(kind, attn, method, lora=True)
        output = model(make_batch(model, make_examples()))
        results.append((output["terms"], gradients(model, output["loss"].mean())))
    (terms, grads), (other_terms, other_grads) = results
    for name, value in terms.items():
        assert_close(other_terms[name], value, what=name)
    scale = max(float(gradient.abs().max()) for gradient in grads.values())
    for name, gradient in grads.items():
        assert float((other_grads[name] - gradient).abs().max()) <= 1e-5 * max(float(gradient.abs().max()), 1e-2 * scale), name


def recorded(model: KavaModel, reduction: str, drop_last_step: bool = True) -> torch.Tensor:
    batch = make_batch(model, make_examples(), drop_last_step=drop_last_step)
    assert batch.teacher is not None
    question = model.backbone.read(batch.question_ids, batch.question_mask).prefix
    _, trace = read_trace(model.backbone, question, batch.teacher, batch.example_seed, keep_hidden=False, group_reduction=reduction)
    return trace.importance


def check_importance(kind: str, attn: str, reduction: str, expected_heads: int | None = None) -> None:
    """The recorder against `output_attentions` of eager attention: example by example, alone and unpadded."""
    model, examples = tiny_model(kind, attn, spread=0.3), make_examples()
    importance = recorded(model, reduction)
    heads = importance.shape[2]
    assert expected_heads is None or heads == expected_heads
    with attention(model, "eager"):
        for b, example in enumerate(examples):
            cot = example.cot(drop_last_step=True)
            ids = torch.tensor([[*example.question, *cot, *example.answer]])
            attentions = model.backbone.causal_lm(input_ids=ids, output_attentions=True).attentions
            first, stop = len(example.question), len(example.question) + len(cot)
            expected = torch.zeros(LAYERS, heads, importance.shape[-1])
            for layer in range(LAYERS):
                for head in range(heads):
                    group = attentions[layer][0].shape[0] // heads
                    rows = attentions[layer][0, head * group : (head + 1) * group, stop:, first:stop].mean(1)
                    expected[layer, head, : len(cot)] = rows.amax(0) if reduction == "max" else rows.mean(0)
            assert_close(importance[:, b], expected, what=f"importance of example {b}")


@dataclass
class Observed:
    """What one batch gives: terms [B], logits per pass [B * S, V], latent states, kept entries."""

    terms: dict[str, Tensor]
    logits: list[Tensor]
    hidden: Tensor | None
    kept: Compressed | None


@torch.no_grad()
def observe(model: KavaModel, batch: Batch) -> Observed:
    logits: list[Tensor] = []
    plain = language_head.next_token_logits

    def spy(*arguments: Any) -> Tensor:
        logits.append(plain(*arguments))
        return logits[-1]

    with MonkeyPatch.context() as patch:
        patch.setattr(language_head, "next_token_logits", spy)
        terms = model(batch)["terms"]
    if model.method.uses_latents:
        question, thought = model.think(batch.question_ids, batch.question_mask, batch.num_latents)
    else:
        question, thought = model.backbone.read(batch.question_ids, batch.question_mask).prefix, None
    kept = None
    if model.method.kv:
        assert batch.teacher is not None
        _, trace = model.read_teacher(question, batch, keep_hidden=False)
        kept = model.compressed(trace, batch.num_latents)
    return Observed(terms, logits, thought.hidden if thought else None, kept)


def check_batching(
    model: KavaModel, num_latents: int = 4, steps: tuple[int, ...] = (1, 2, 3, 4), stage: int = 0, drop_last_step: bool = True
) -> None:
    examples = make_examples(5, steps=steps)
    batch = make_batch(model, examples, num_latents, stage, drop_last_step=drop_last_step)
    together = observe(model, batch)
    masks = [suffix.mask for suffix in (batch.student, batch.teacher) if suffix is not None]
    if runs_as_on_gpu() and model.backbone.takes_any_mask:
        masks.reverse()  # the teacher is read with the question
    if batch.steps is not None:
        masks.append(batch.steps[:, batch.num_latents :] >= 0)
    for b, example in enumerate(examples):
        alone = observe(model, make_batch(model, [example], num_latents, stage, drop_last_step=drop_last_step))
        for name, value in alone.terms.items():
            assert_close(together.terms[name][b : b + 1], value, what=f"{name} of example {b}")
        for mask, all_logits, own in zip(masks, together.logits, alone.logits, strict=True):
            real = mask[b]
            assert_close(all_logits.view(*mask.shape, -1)[b][real], own[: int(real.sum())], what=f"logits of example {b}")
        if alone.hidden is not None:
            assert together.hidden is not None
            assert_close(together.hidden[b : b + 1], alone.hidden, what=f"latents of example {b}")
        if alone.kept is not None:
            assert together.kept is not None
            assert torch.equal(together.kept.indices[:, b : b + 1], alone.kept.indices)
            assert torch.equal(together.kept.slot_mask[b : b + 1], alone.kept.slot_mask)
            assert_close(together.kept.keys[:, b : b + 1], alone.kept.keys, what=f"kept keys of example {b}")


def uncached(model: KavaModel, embeds: Tensor) -> Any:
    """One pass of the causal language model over everything, without a cache."""
    return model.backbone.causal_lm(inputs_embeds=embeds, use_cache=False, output_hidden_states=True)


def uncached_logits(model: KavaModel, question: list[int], prompt: list[int], written: list[int], use_latent: bool) -> Tensor:
    """Logits of the next token, [V], with the latents thought out anew."""
    embedding = model.backbone.causal_lm.get_input_embeddings()

    def embed(ids: list[int] | Tensor) -> Tensor:
        return embedding(torch.as_tensor(ids, dtype=torch.long))[None]

    bot, eot, latent = embed(model.backbone.special_ids).split(1, dim=1)
    method, text = model.method, embed(question)
    if not (method.uses_latents and use_latent):
        tail = written if method.writes_cot or method.uses_latents else [*prompt, *written]
        return uncached(model, torch.cat([text, embed(tail)], dim=1)).logits[0, -1]
    text = torch.cat([text, bot], dim=1)
    if method.latents == "sequential":
        for _ in range(M):
            text = torch.cat([text, model.projection(uncached(model, text).hidden_states[-1][:, -1:])], dim=1)
        thought = text
    else:
        latents = latent.expand(-1, M, -1)
        for _ in range(T):
            hidden = uncached(model, torch.cat([text, latents], dim=1)).hidden_states[-1]
            latents = model.projection(hidden[:, -(M + 1) : -1])
        thought = torch.cat([text, latents], dim=1)
    return uncached(model, torch.cat([thought, eot, embed([*prompt, *written])], dim=1)).logits[0, -1]


def check_cached_decoding(kind: str, attn: str, method: str, use_latent: bool = True) -> None:
    """Every logit of cached decoding equals that of reading everything anew."""
    model, builder = mini_model(kind, method, attn=attn, lora=True), mini_builder("<never>")
    reasoner = Reasoner(model, builder, M, T)
    caught: list[Tensor] = []
    plain = model.backbone.logits

    def spy(hidden: Tensor) -> Tensor:
        caught.append(plain(hidden))
        return caught[-1]

    model.backbone.logits = spy  # type: ignore[method-assign]
    answers = reasoner.generate(QUESTIONS, max_new_tokens=TOKENS, use_latent=use_latent)
    assert len(caught) == TOKENS
    # The reasoner sorts by length.
    order = sorted(range(len(QUESTIONS)), key=lambda index: len(builder.question_ids(QUESTIONS[index])))
    for row, index in enumerate(order):
        question, tokens = builder.question_ids(QUESTIONS[index]), answers[index].token_ids
        assert len(tokens) == TOKENS
        for step in range(TOKENS):
            expected = uncached_logits(model, question, builder.prompt_ids, tokens[:step], use_latent)
            assert_close(caught[step][row], expected, 1e-4, f"{kind} {method}, token {step}")
            assert tokens[step] == int(expected.argmax())


def make_trained(
    place: Path, kind: str = "llama", *, attn: str = "sdpa", tied: bool = True, lora: bool = True, spare_rows: int = 0,
    method: str = "kava", spread: float = 0.1,
) -> Trained:  # fmt: skip
    """A model built from a base directory as a run builds it, with every trainable weight moved away from its start."""
    base = place / "base"
    tokenizer = build_mini_tokenizer(MINI, PROMPT)
    tiny_lm(kind, attn, vocabulary=len(tokenizer) + spare_rows, tied=tied, spread=spread).save_pretrained(base)
    tokenizer.save_pretrained(base)
    config = lora_config(
        **{"model.name": str(base), "lora.enabled": lora, "latent.num_tokens": 4, "method": method, "model.attn_implementation": attn}
    )
    tokenizer = load_tokenizer(str(base))
    torch.manual_seed(5)
    trained = Trained(
        build_model(str(base), tokenizer, config), tokenizer, config, str(base), {"step": 7, "validation": {"accuracy": 0.25}}
    )
    with torch.no_grad():
        for parameter in trained.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    trained.model.eval()
    return trained


@torch.no_grad()
def outputs(trained: Trained) -> list[Tensor]:
    """Losses of a batch, logits of the first token of an answer, and logits over the whole vocabulary at every position."""
    builder, model = trained.builder, trained.model
    batch = build_collator(trained.config, builder).collate([builder.encode(example) for example in mini_examples(6)])
    reasoner = Reasoner(model, builder, trained.config.latent.num_tokens, trained.config.latent.num_iterations)
    _, logits, _ = reasoner.start([builder.question_ids(example.question) for example in mini_examples(6)])
    everywhere = model.backbone.model(input_ids=batch.question_ids, attention_mask=batch.question_mask.long()).logits
    return [model(batch)["loss"], logits, everywhere]


@torch.no_grad()
def check_saving(place: Path, trained: Trained) -> None:
    """Saved and loaded, a model gives the same numbers, bit for bit."""
    expected = outputs(trained)
    save_checkpoint(place / "saved", trained)
    torch.manual_seed(99)
    loaded = load_checkpoint(place / "saved")
    for value, before in zip(outputs(loaded), expected, strict=True):
        assert torch.equal(value, before)
    assert (loaded.base, loaded.metadata) == (trained.base, trained.metadata)
    assert loaded.config == trained.config
