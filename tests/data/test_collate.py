"""Batches: which latents and which tokens of the trace belong to a step."""

import pytest

from helpers.tiny import PROMPT_IDS, make_batch, make_examples, tiny_model
from kava.data.collate import Collator
from kava.data.sequences import EncodedExample
from kava.methods import METHODS

EXAMPLES = [
    EncodedExample([11], [[21, 22], [23], [24, 25], [26]], [*PROMPT_IDS, 30, 1], seed=9),
    EncodedExample([11], [[31], [32]], [*PROMPT_IDS, 40, 1], seed=8),
    EncodedExample([11], [[33]], [*PROMPT_IDS, 41, 1], seed=7),
]


@pytest.mark.parametrize(
    ("num_latents", "per_step", "latents", "traces"),
    [
        # One latent per step, and one to spare.
        (4, 1, [0, 1, 2, 3], [[0, 0, 1, 2, 2], [0, -1, -1, -1, -1], [-1] * 5]),
        # Two per step: the last two take what is left over.
        (4, 2, [0, 0, 1, 1], [[0, 0, 1, 1, 1], [0, -1, -1, -1, -1], [-1] * 5]),
        # An odd one belongs to the last step, and fewer than a step has make one step of all.
        (5, 2, [0, 0, 1, 1, 1], [[0, 0, 1, 1, 1], [0, -1, -1, -1, -1], [-1] * 5]),
        (1, 2, [0], [[0, 0, 0, 0, 0], [0, -1, -1, -1, -1], [-1] * 5]),
    ],
)
def test_which_latents_and_tokens_belong_to_a_step(num_latents: int, per_step: int, latents: list[int], traces: list[list[int]]) -> None:
    """The teacher's trace, which leaves the last step out."""
    collator = Collator(METHODS["simcot"], 0, len(PROMPT_IDS), num_latents=num_latents, tokens_per_step=per_step)
    steps = collator.collate(EXAMPLES).steps
    assert steps is not None
    assert steps.tolist() == [latents + trace for trace in traces]


def test_other_methods_have_no_steps_to_read() -> None:
    assert [name for name in METHODS if make_batch(tiny_model(method=name), make_examples()).steps is not None] == ["simcot"]
