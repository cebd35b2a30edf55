"""Intermediate results that stand in a latent, against a loop over all pairs."""

import pytest

from helpers.explaining import EXAMPLES, LATENTS, QUESTIONS, make
from kava.explain.intermediate import intermediate_results
from kava.explain.questions import own_example
from kava.explain.readout import read_latents


def test_results_are_looked_for_in_every_latent() -> None:
    reasoner = make()
    found = intermediate_results(reasoner, EXAMPLES, batch_size=4)
    assert [item.steps for item in found] == sorted({len(example.steps) for example in EXAMPLES})
    for item in found:
        own = [example for example in EXAMPLES if len(example.steps) == item.steps]
        assert item.questions == len(own)
        decoded = [read_latents(reasoner, example.question, 1).final() for example in own]
        results = [[step.rpartition("=")[2].removesuffix(">>") for step in example.steps] for example in own]
        for s in range(item.steps):
            for latent in range(LATENTS):
                hits = [[decoded[a][latent] == results[b][s] for b in range(len(own))] for a in range(len(own))]
                own_hits = sum(hits[a][a] for a in range(len(own)))
                assert item.held[s][latent] == pytest.approx(own_hits / len(own))
                others = sum(map(sum, hits)) - own_hits
                assert item.by_chance[s][latent] == pytest.approx(others / (len(own) * (len(own) - 1)))
    untraced = [own_example(question, number) for number, question in enumerate(QUESTIONS)]
    assert intermediate_results(reasoner, untraced) == []
