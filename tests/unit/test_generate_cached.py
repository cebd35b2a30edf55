"""Cached decoding equals recomputing everything at each token, and transformers' own greedy search."""

import pytest
import torch

from checks import QUESTIONS, M, T, check_cached_decoding
from kava.generate import Reasoner
from tiny import KINDS, mini_builder, mini_model

MODES = {"latent": ("kava", True), "sequential": ("codi", True), "direct": ("no_cot", True), "written": ("full_cot", True),
         "teacher": ("kava", False)}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_cached_decoding_equals_recomputing_everything(kind: str, mode: str) -> None:
    method, use_latent = MODES[mode]
    check_cached_decoding(kind, "sdpa", method, use_latent)


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
