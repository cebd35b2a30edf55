"""Shared fixtures of the checks: a tiny random model with grouped-query attention and some built-in problems, created on first use.

Large packages are imported only when needed: if one is broken, the checks that need it fail and the others still run.
"""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kava.config import Config, MiniDataConfig, build_config
from kava.data.example import Example
from kava.data.mini.problems import generate

if TYPE_CHECKING:
    from torch import Tensor

    from kava.checkpoint import Trained
    from kava.data.collate import Batch
    from kava.losses.total import LossTerms

PROBLEMS = MiniDataConfig(max_steps=3, num_train=60, num_eval=60)
LATENTS = 4


class Information(str):
    """Result of a check that only reports information and cannot fail."""

    __slots__ = ()


class CheckFailedError(Exception):
    """A check failed; the message says what is wrong."""


class Lab:
    """A temporary directory and the fixtures in it; nothing is written outside of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @cached_property
    def problems(self) -> list[Example]:
        """Four built-in problems of one to three steps."""
        return generate("train", PROBLEMS)[:4]

    @cached_property
    def base(self) -> Path:
        """Directory of a tiny base model with its tokenizer, saved in the format of published models."""
        import torch
        from transformers import LlamaForCausalLM

        from kava.data.mini.tokenizer import build_mini_tokenizer
        from kava.model.build import silence_libraries
        from kava.tools.bench.workload import llama_config

        silence_libraries()
        tokenizer = build_mini_tokenizer(PROBLEMS, Config().dataset.answer_prompt)
        torch.manual_seed(0)
        for part in (LlamaForCausalLM(llama_config("tiny", tokenizer)), tokenizer):
            part.save_pretrained(self.directory / "base")
        return self.directory / "base"

    def config(self, overrides: dict[str, Any] | None = None) -> Config:
        """Return the configuration of KaVa on the tiny base model and the built-in problems, on the CPU."""
        settings = {
            "model.name": str(self.base), "lora.r": 4, "lora.dropout": 0.0, "latent.num_tokens": LATENTS,
            "system.mixed_precision": "no", "system.device": "cpu",
        }  # fmt: skip
        return build_config({"dataset": {"mini": PROBLEMS.model_dump()}}, "the smoke test", settings | (overrides or {}))

    @cached_property
    def trained(self) -> "Trained":
        """A tiny KaVa model, M = 4, T = 3. All trainable weights get random noise: adapters start at zero, which would hide errors."""
        import torch

        from kava.checkpoint import Trained
        from kava.model.build import build_model
        from kava.model.tokenizer import load_tokenizer

        tokenizer, config = load_tokenizer(str(self.base)), self.config()
        torch.manual_seed(1)
        model = build_model(str(self.base), tokenizer, config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return Trained(model.eval(), tokenizer, config, str(self.base))

    @cached_property
    def batch(self) -> "Batch":
        """The problems as a padded training batch."""
        return self.batch_of(self.problems)

    def batch_of(self, problems: list[Example]) -> "Batch":
        """Return a training batch of the problems."""
        from kava.data.collate import build_collator

        builder = self.trained.builder
        return build_collator(self.trained.config, builder).collate([builder.encode(problem) for problem in problems])


def close_to_zero(difference: float, allowed: float, what: str) -> str:
    """Return a sentence with a difference that should be no more than rounding error.

    Raises:
        CheckFailedError: the difference is larger than allowed, or NaN.
    """
    if not difference <= allowed:
        raise CheckFailedError(f"{what}: off by {difference:.1e}, allowed {allowed:.0e}")
    return f"{what}: off by {difference:.1e}"


def relative(actual: "Tensor", expected: "Tensor") -> float:
    """Return the largest absolute difference over the largest expected magnitude; NaN if either tensor has a NaN."""
    return float((actual - expected).detach().abs().max() / expected.detach().abs().max().clamp(min=1e-30))


def terms_apart(actual: "LossTerms", expected: "LossTerms") -> float:
    """Return the largest relative difference of any loss term, NaN if one is NaN; each term holds one value per example."""
    import numpy as np

    return float(np.max([relative(value, expected[name]) for name, value in actual.items()]))
