"""Latents that are zeroed, swapped or averaged, against a loop over questions."""

import pytest
import torch
from torch import Tensor

from helpers.explaining import EXAMPLES, LATENTS, QUESTIONS, make
from kava.cache.layers import slice_layers
from kava.cache.prefix import Prefix
from kava.data.answers import extract_answer
from kava.explain.intervene import _effect, interventions
from kava.generate import Reasoner


def naive_zeroed(reasoner: Reasoner, question: str, latent: int) -> str | None:
    ids, mask = reasoner.pad([reasoner.builder.question_ids(question)])
    thought, passes = reasoner.think(ids, mask)
    prefix, column = thought.prefix, thought.prefix.length - LATENTS + latent

    def zeroed(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[:, :, column] = 0
        return tensor

    layers = tuple((zeroed(keys), zeroed(values)) for keys, values in slice_layers(prefix.layers, 0, prefix.length))
    opened, logits = reasoner.conclude(Prefix(layers, prefix.mask, prefix.next_position, prefix.last_hidden))
    text = reasoner.write(opened, logits, passes, 4)[0].text
    return extract_answer(text, reasoner.builder.answer_prompt, after_prompt=True)


@torch.inference_mode()
def test_zeroing_a_latent_is_what_a_loop_over_questions_gives() -> None:
    reasoner = make()
    found = interventions(reasoner, EXAMPLES, batch_size=4, max_new_tokens=4)
    plain = [extract_answer(g.text, "The answer is:", after_prompt=True) for g in reasoner.generate(QUESTIONS, max_new_tokens=4)]
    zero = [effect for effect in found.effects if effect.kind == "zero"]
    assert [effect.latent for effect in zero] == [*range(LATENTS), None]
    for effect in zero[:LATENTS]:
        expected = [naive_zeroed(reasoner, question, effect.latent or 0) for question in QUESTIONS]
        assert effect.changed == pytest.approx(sum(a != b for a, b in zip(plain, expected, strict=True)) / len(plain))
    assert any(effect.changed > 0 for effect in found.effects)
    alone = interventions(reasoner, EXAMPLES, batch_size=1, max_new_tokens=4)
    assert found.model_dump() == alone.model_dump()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_swap_and_mean_of_one_and_the_same_question_change_nothing(kind: str) -> None:
    found = interventions(make(kind), [EXAMPLES[0]] * 3, max_new_tokens=4)
    assert all(effect.changed == 0 and effect.difference == 0 for effect in found.effects if effect.kind != "zero")


def test_an_answer_in_other_words_is_not_changed() -> None:
    found = _effect(None, "swap", ["yes", "no"], ["True", "True"], None, None, "choice")
    assert (found.changed, found.took_donor) == (0.5, 0.5)
