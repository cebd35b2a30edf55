"""A tiny reasoner with a handful of questions, for the tests of explanations."""

from typing import Any

from helpers.tiny import lora_config, mini_builder, mini_examples, mini_model
from kava.config import Config
from kava.generate import Reasoner

LATENTS = 4
EXAMPLES = list(mini_examples(6))
QUESTIONS = [example.question for example in EXAMPLES]


def make(kind: str = "llama", method: str = "kava", *, attn: str = "sdpa", iterations: int = 2, latents: int = LATENTS) -> Reasoner:
    """A random model whose latents differ from each other."""
    return Reasoner(mini_model(kind, method, attn=attn, num_iterations=iterations, spread=0.3), mini_builder(), latents, iterations)


def config(**overrides: Any) -> Config:
    """Settings for its number of latents."""
    return lora_config(**{"evaluation.batch_size": 4, "latent.num_tokens": LATENTS, **overrides})
