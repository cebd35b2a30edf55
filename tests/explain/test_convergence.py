"""How fast the iterations reach their fixed point, and what that means for answers."""

import pytest
import torch

from helpers.explaining import EXAMPLES, LATENTS, QUESTIONS, make
from kava.data.answers import extract_answer
from kava.data.example import Example
from kava.explain.convergence import _iterations, convergence, fixed_point_distances
from kava.explain.figures import convergence_figure
from kava.generate import Reasoner


def test_the_first_t_latents_are_settled_after_t_iterations() -> None:
    settled = fixed_point_distances(make(), QUESTIONS, batch_size=4)
    assert settled.distance.shape == (LATENTS + 1, LATENTS)
    for t in range(LATENTS + 1):
        assert float(settled.distance[t, :t].sum()) < 1e-5
        assert bool((settled.distance[t, t:] > 1e-3).all())
    assert float(settled.top_token_agreement[-1]) == 1.0
    alone = [fixed_point_distances(make(), [question]).distance for question in QUESTIONS]
    assert torch.allclose(settled.distance, torch.stack(alone).mean(0), atol=1e-5)


def test_convergence_counts_the_answers_of_each_t() -> None:
    reasoner = make()
    found = convergence(reasoner, EXAMPLES, batch_size=4, max_new_tokens=4)
    assert [item.iterations for item in found.answers] == [0, 1, 2, 4]

    def predictions(t: int) -> list[str | None]:
        own = Reasoner(reasoner.model, reasoner.builder, LATENTS, t)
        return [extract_answer(g.text, own.builder.answer_prompt, after_prompt=True) for g in own.generate(QUESTIONS, max_new_tokens=4)]

    exact = predictions(LATENTS)
    for item in found.answers:
        own = predictions(item.iterations)
        assert item.agreement == pytest.approx(sum(a == b for a, b in zip(own, exact, strict=True)) / len(own))
        assert item.accuracy == pytest.approx(sum(a == e.answer for a, e in zip(own, EXAMPLES, strict=True)) / len(own))
    assert found.answers[-1].difference_to_fixed_point == 0.0
    (legend,) = convergence_figure(found).legends
    assert "configured T = 2" in [text.get_text() for text in legend.get_texts()]


def test_answers_agree_by_value() -> None:
    question = Example("How many ?", (), "18", "a")
    assert _iterations(1, ["18.0", None, "3"], ["18", None, "4"], [question] * 3, "number").agreement == pytest.approx(2 / 3)
    assert _iterations(1, ["True"], ["yes"], [question], "choice").agreement == 1
