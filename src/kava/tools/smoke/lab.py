"""What the checks share: tiny random models with grouped queries and a few of the built-in problems, made on first use.

Nothing heavy is imported before it is needed: where a package is broken, the checks that need it say so and the others run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from kava.config import Config, MiniDataConfig, build_config
from kava.data.example import Example
from kava.data.mini.problems import generate
from kava.tools.bench.workload import ANSWER_PROMPT, Workload, build_workload, llama_config

if TYPE_CHECKING:
    from torch import Tensor

    from kava.data.collate import Batch
    from kava.data.sequences import SequenceBuilder
    from kava.losses.total import LossTerms
    from kava.model.kava import KavaModel

PROBLEMS = MiniDataConfig(max_steps=3, num_train=60, num_eval=60)
LATENTS = 4


class Lab:
    """A temporary directory and what is in it; nothing outside it is written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @cached_property
    def _built(self) -> tuple["KavaModel", "SequenceBuilder"]:
        import torch

        model, builder = build_workload(Workload(shape="tiny", latents=LATENTS, lora_r=4))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    # Adapters start as zero, and a zero hides mistakes.
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        return model.eval(), builder

    @property
    def model(self) -> "KavaModel":
        """A tiny KaVa model, M = 4, T = 3."""
        return self._built[0]

    @property
    def builder(self) -> "SequenceBuilder":
        """Its sequences."""
        return self._built[1]

    @cached_property
    def problems(self) -> list[Example]:
        """Built-in problems of one to three steps."""
        return generate("train", PROBLEMS)

    def batch(self, problems: list[Example]) -> "Batch":
        """A training batch."""
        from kava.data.collate import Collator

        collator = Collator(self.model.method, self.builder.tokenizer.pad_token_id, len(self.builder.prompt_ids), num_latents=LATENTS)
        return collator.collate([self.builder.encode(problem) for problem in problems])

    @cached_property
    def base(self) -> Path:
        """A tiny base model with its tokenizer, saved as any published one is."""
        import torch
        from transformers import LlamaForCausalLM

        from kava.data.mini.tokenizer import build_mini_tokenizer

        directory = self.directory / "base"
        tokenizer = build_mini_tokenizer(PROBLEMS, ANSWER_PROMPT)
        torch.manual_seed(0)
        LlamaForCausalLM(llama_config("tiny", tokenizer)).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return directory

    def config(self, overrides: dict[str, Any]) -> Config:
        """KaVa on the tiny base and the built-in problems, on the CPU."""
        settings = {
            "model.name": str(self.base), "lora.r": 4, "lora.dropout": 0.0, "latent.num_tokens": LATENTS,
            "dataset.mini.max_steps": PROBLEMS.max_steps, "dataset.mini.num_train": PROBLEMS.num_train,
            "dataset.mini.num_eval": PROBLEMS.num_eval,
            "system.mixed_precision": "no", "system.device": "cpu",
        }  # fmt: skip
        return build_config({}, "the smoke test", settings | overrides)


@contextmanager
def open_lab() -> Iterator[Lab]:
    """A lab in a temporary directory that is removed afterwards."""
    with TemporaryDirectory(prefix="kava-smoke-") as directory:
        yield Lab(Path(directory))


def relative(actual: "Tensor", expected: "Tensor") -> float:
    """Largest difference over the largest expected magnitude; NaN where either has one."""
    return float((actual - expected).detach().abs().max() / expected.detach().abs().max().clamp(min=1e-30))


def terms_apart(actual: "LossTerms", expected: "LossTerms") -> float:
    """Largest relative difference of a loss term, example by example."""
    return max(relative(value, expected[name]) for name, value in actual.items())
