"""Cached decoding equals recomputing everything at each token, and transformers' own greedy search."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kava.generate import Reasoner
from kava.model.kava import KavaModel
from tiny import KINDS, assert_close, mini_builder, mini_examples, mini_model

QUESTIONS = [example.question for example in mini_examples(3)]
TOKENS, M, T = 6, 4, 2
MODES = {"latent": ("kava", True), "sequential": ("codi", True), "direct": ("no_cot", True), "written": ("full_cot", True),
         "teacher": ("kava", False)}  # fmt: skip


def run(model: KavaModel, embeds: Tensor) -> Any:
    """One pass of the causal language model over everything, without a cache."""
    return model.backbone.causal_lm(inputs_embeds=embeds, use_cache=False, output_hidden_states=True)


def uncached_logits(model: KavaModel, question: list[int], prompt: list[int], written: list[int], use_latent: bool) -> Tensor:
    """Logits of the next token, [V], with the latents thought out anew."""
    embedding = model.backbone.causal_lm.get_input_embeddings()

    def embed(ids: list[int] | Tensor) -> Tensor:
        return embedding(torch.as_tensor(ids, dtype=torch.long))[None]

    bot, eot, latent = embed(model.backbone.special_ids).split(1, dim=1)
    method, text = model.method, embed(question)
    if not (method.thinks and use_latent):
        tail = written if method.writes_cot or method.thinks else [*prompt, *written]
        return run(model, torch.cat([text, embed(tail)], dim=1)).logits[0, -1]
    text = torch.cat([text, bot], dim=1)
    if method.latents == "sequential":
        for _ in range(M):
            text = torch.cat([text, model.projection(run(model, text).hidden_states[-1][:, -1:])], dim=1)
        thought = text
    else:
        latents = latent.expand(-1, M, -1)
        for _ in range(T):
            hidden = run(model, torch.cat([text, latents], dim=1)).hidden_states[-1]
            latents = model.projection(hidden[:, -(M + 1) : -1])
        thought = torch.cat([text, latents], dim=1)
    return run(model, torch.cat([thought, eot, embed([*prompt, *written])], dim=1)).logits[0, -1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_cached_decoding_equals_recomputing_everything(kind: str, mode: str) -> None:
    method, use_latent = MODES[mode]
    model, builder = mini_model(kind, method, lora=True), mini_builder("<never>")
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
            assert_close(caught[step][row], expected, 1e-4, f"{mode}, token {step}")
            assert tokens[step] == int(expected.argmax())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_written_answers_equal_transformers_greedy_search(kind: str) -> None:
    model, builder = mini_model(kind, "full_cot"), mini_builder()
    answers = Reasoner(model, builder, M, T).generate(QUESTIONS, max_new_tokens=20)
    end = builder.tokenizer.eos_token_id
    for question, answer in zip(QUESTIONS, answers, strict=True):
        ids = torch.tensor([builder.question_ids(question)])
        mask, pad = torch.ones_like(ids), builder.tokenizer.pad_token_id
        found = model.backbone.model.generate(
            ids, attention_mask=mask, max_new_tokens=20, do_sample=False, pad_token_id=pad, eos_token_id=end
        )
        assert answer.token_ids == [token for token in found[0, ids.shape[1] :].tolist() if token != end]
