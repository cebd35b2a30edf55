"""Decode each latent with the language-model head (logit lens), after every iteration."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kava.generate import Reasoner
from kava.model.backbone import evaluating


@dataclass(frozen=True)
class Readout:
    """Top tokens of every latent after the prefill and after each Jacobi iteration.

    Attributes:
        question: the question.
        tokens: `tokens[t][i]` holds the top tokens of latent i after iteration t (0 is the prefill).
        probabilities: of these tokens, in the same shape.
    """

    question: str
    tokens: list[list[list[str]]]
    probabilities: list[list[list[float]]]

    @property
    def names(self) -> list[str]:
        """The name of each row of `tokens`; sequential latents, and parallel ones with T = 0, have a single row."""
        rows = len(self.tokens)
        return ["prefill", *(f"pass {number}" for number in range(1, rows))] if rows > 1 else ["latents"]

    def final(self) -> list[str]:
        """Return the top token of each latent after the last iteration."""
        return [top[0] for top in self.tokens[-1]]


@torch.inference_mode()
def read_latents(reasoner: Reasoner, question: str, top_k: int = 5) -> Readout:
    """Compute the latents of one question and decode them at every iteration.

    Args:
        reasoner: a model of a method that has latents.
        question: plain text.
        top_k: number of tokens per latent.
    """
    ids, mask = reasoner.pad([reasoner.builder.question_ids(question)])
    with evaluating(reasoner.model):
        thought, _ = reasoner.think(ids, mask, keep_trajectory=True)
    tokens, probabilities = [], []
    for hidden in thought.trajectory or (thought.hidden,):
        top = likeliest(reasoner, hidden[0, 1:], top_k)
        tokens.append([[readable(reasoner, token) for token in row] for row in top.indices.tolist()])
        probabilities.append(top.values.tolist())
    return Readout(question, tokens, probabilities)


def likeliest(reasoner: Reasoner, states: Tensor, count: int) -> Any:
    """Return the `count` most likely tokens (at most V) at last-layer hidden states [.., E]: `values` and `indices` [.., count]."""
    chances = reasoner.model.backbone.logits(states).float().softmax(-1)
    return chances.topk(min(count, chances.shape[-1]))


def readable(reasoner: Reasoner, token: int) -> str:
    """Return a token's text without surrounding white space; a token of white space only is quoted."""
    text = reasoner.builder.tokenizer.decode([token]).strip()
    return text or repr(reasoner.builder.tokenizer.decode([token]))
