"""The whole content of the latents: states, keys, values and words, per iteration."""

import pytest
import torch

from helpers.explaining import LATENTS, QUESTIONS, make
from helpers.tiny import LAYERS
from kava.errors import UserError
from kava.explain.thoughts import think


def test_a_question_s_thoughts_do_not_depend_on_its_batch() -> None:
    reasoner = make()
    together = think(reasoner, QUESTIONS[:3], top_k=2)
    assert together.hidden.shape[:3] == (3, 3, LATENTS)
    assert together.keys.shape[:3] == (3, LAYERS, 3)
    assert torch.tensor(together.probabilities).shape == (3, 3, LATENTS, 2)
    for index, question in enumerate(QUESTIONS[:3]):
        alone = think(reasoner, [question], top_k=2)
        assert torch.allclose(together.hidden[:, index], alone.hidden[:, 0], atol=5e-5)
        assert torch.allclose(together.values[:, :, index], alone.values[:, :, 0], atol=5e-5)
        assert together.tokens[index][-1][0][0] == alone.tokens[0][-1][0][0]


def test_sequential_latents_have_one_iteration() -> None:
    assert think(make(method="codi"), QUESTIONS[:1]).hidden.shape[0] == 1


def test_without_latents_or_questions_there_is_nothing_to_read() -> None:
    with pytest.raises(UserError, match="method full_cot has no latents to read"):
        think(make(method="full_cot"), QUESTIONS)
    with pytest.raises(UserError, match="there is no question"):
        think(make(), [])
