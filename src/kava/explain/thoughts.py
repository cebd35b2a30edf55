"""Content of the latents: hidden states, keys, values and decoded tokens, per latent and iteration."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kava.cache.layers import stack_layers
from kava.errors import UserError
from kava.explain.readout import likeliest, readable
from kava.generate import Reasoner
from kava.methods import WITH_LATENTS


@dataclass(frozen=True, eq=False)
class Thoughts:
    """The latents of a batch of questions. Iteration 0 is the prefill; sequential methods (CODI, Coconut) have one iteration only."""

    questions: list[str]
    hidden: Float[Tensor, "T1 B M E"]
    """Last-layer hidden states after each iteration."""
    keys: Float[Tensor, "T1 L B H M D"]
    """Cached keys, after RoPE."""
    values: Float[Tensor, "T1 L B H M D"]
    tokens: list[list[list[list[str]]]]
    """`tokens[b][t][i]`: the most likely tokens of question b's latent i after iteration t, most likely first."""
    probabilities: list[list[list[list[float]]]]
    """Probabilities of these tokens, in the same shape."""


@torch.inference_mode()
def think(reasoner: Reasoner, questions: Sequence[str], top_k: int = 1) -> Thoughts:
    """Compute the latents of questions and keep all of their content; the result of a question does not depend on its batch.

    Raises:
        UserError: the method has no latents, or there is no question.
    """
    model = reasoner.model
    if not model.method.uses_latents:
        raise UserError(f"method {model.method.name} has no latents to read; take a checkpoint of {WITH_LATENTS}")
    if not questions:
        raise UserError("there is no question to think about")
    model.eval()
    ids, mask = reasoner.pad(reasoner.builder.all_question_ids(questions))
    latents = reasoner.num_latents
    iterations = [0] if model.method.latents == "sequential" else range(min(reasoner.num_iterations, latents) + 1)
    hidden, keys, values = [], [], []
    for iteration in iterations:
        thought, _ = reasoner.with_iterations(iteration).think(ids, mask)
        layers_keys, layers_values = stack_layers(thought.prefix.layers, thought.prefix.length - latents, thought.prefix.length)
        hidden.append(thought.hidden[:, -latents:])
        keys.append(layers_keys)
        values.append(layers_values)
    states = torch.stack(hidden)
    top = likeliest(reasoner, states, top_k)
    tokens = [
        [[[readable(reasoner, token) for token in latent] for latent in iteration] for iteration in question]
        for question in top.indices.transpose(0, 1).tolist()
    ]
    probabilities = top.values.transpose(0, 1).tolist()
    return Thoughts(list(questions), states, torch.stack(keys), torch.stack(values), tokens, probabilities)
