"""What the answer attends to."""

import torch

from helpers.explaining import EXAMPLES, LATENTS, QUESTIONS, make
from helpers.tiny import LAYERS, mini_builder
from kava.explain.answer_attention import answer_attention


def test_attention_is_shared_out_completely_and_by_every_backend_alike() -> None:
    question, answer = mini_builder().question_ids(QUESTIONS[0]), mini_builder().encode(EXAMPLES[0]).answer[-2:]
    sdpa, eager = (answer_attention(make(attn=attn), question, answer) for attn in ("sdpa", "eager"))
    assert torch.allclose(sum(sdpa.parts.values(), torch.zeros(LAYERS)), torch.ones(LAYERS), atol=1e-5)
    assert torch.allclose(sdpa.latents.sum(-1).mean(-1), sdpa.parts["latents"], atol=1e-6)
    assert torch.allclose(sdpa.latents, eager.latents, atol=1e-5)
    assert sdpa.latents.shape == (LAYERS, 2, LATENTS)
