"""Intermediate results in the latents: how often each latent decodes to the result of each step.

    for found in intermediate_results(reasoner, examples): print(found.held[0])

The public CODI analysis counts such matches as well. A digit often matches by chance, so every share is reported together with the
share that the same latents reach on the results of other questions.
"""

from collections.abc import Sequence

import numpy as np
import torch

from kava.data.answers import extract_answer
from kava.data.example import Example
from kava.explain.readout import readable
from kava.explain.record import StepResults
from kava.generate import Reasoner


def intermediate_results(reasoner: Reasoner, examples: Sequence[Example], batch_size: int = 32) -> list[StepResults]:
    """Compute for every latent the share of questions in which its top token is (the first token of) a step's result.

    Questions are grouped by number of steps.

    Args:
        reasoner: a model with latents.
        examples: those whose steps all end in a number are counted, if at least two have the same number of steps.
        batch_size: questions per batch.
    """
    by_steps: dict[int, list[tuple[Example, list[str]]]] = {}
    for example in examples:
        results = [result for step in example.steps if (result := extract_answer(step, "")) is not None]
        if results and len(results) == len(example.steps):
            by_steps.setdefault(len(results), []).append((example, [first_token(reasoner, result) for result in results]))
    found = []
    for steps, own in sorted(by_steps.items()):
        if len(own) < 2:
            continue
        decoded = np.array(_decoded(reasoner, [example.question for example, _ in own], batch_size))
        sought = np.array([firsts for _, firsts in own])
        held = (decoded[:, None] == sought[:, :, None]).sum(0)  # [steps, latents]
        names = np.unique(sought)
        pairs = _counts(sought, names).T @ _counts(decoded, names)
        by_chance = (pairs - held) / (len(own) * (len(own) - 1))
        found.append(StepResults(steps=steps, questions=len(own), held=(held / len(own)).tolist(), by_chance=by_chance.tolist()))
    return found


def _counts(tokens: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Count how often each name occurs in each column: [names, columns]."""
    return (tokens[None] == names[:, None, None]).sum(1)


@torch.inference_mode()
def _decoded(reasoner: Reasoner, questions: Sequence[str], batch_size: int) -> list[list[str]]:
    """Return the top token of every latent after the last iteration."""
    texts = []
    for ids, mask in reasoner.batches(questions, batch_size):
        thought, _ = reasoner.think(ids, mask)
        top = reasoner.model.backbone.logits(thought.hidden[:, 1:]).argmax(-1)
        texts += [[readable(reasoner, token) for token in row] for row in top.tolist()]
    return texts


def first_token(reasoner: Reasoner, result: str) -> str:
    """Return the first token of a result, as `readable` gives it: what a latent that encodes the result decodes to."""
    tokenizer = reasoner.builder.tokenizer
    ids = tokenizer(result, add_special_tokens=False)["input_ids"]
    # Some tokenizers start with a separate space token; a latent that decodes to a space encodes no result.
    pieces = (tokenizer.decode([token]).strip() for token in ids)
    return next((piece for piece in pieces if piece), result)
