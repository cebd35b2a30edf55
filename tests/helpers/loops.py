"""The training loop on a tiny trained model, its weights, and what it logged."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers.tiny import mini_examples
from kava.checkpoint import Trained
from kava.data.collate import build_collator
from kava.train.batches import StepBatches
from kava.train.checkpoints import Checkpoints
from kava.train.curriculum import Curriculum
from kava.train.loop import Loop
from kava.train.progress import Report

# An epoch is four steps of two batches; the last one has a single batch.
STEPS, EXAMPLES = 5, 14


def make_loop(trained: Trained, run: Path, device: str, **changes: Any) -> tuple[Loop, Trained]:
    training = {"batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": STEPS, "save_steps": 1, "logging_steps": 2}
    config = trained.config.model_copy(deep=True)
    changes["training"] = training | changes.get("training", {})
    for section, values in changes.items():
        for name, value in values.items():
            setattr(getattr(config, section), name, value)
    own = Trained(copy.deepcopy(trained.model), trained.tokenizer, config, trained.base)
    encoded = own.builder.encode_all(list(mini_examples(EXAMPLES)))
    batches = StepBatches(encoded, Curriculum(build_collator(config, own.builder)), config.training, torch.device(device))
    run.mkdir(exist_ok=True)
    return Loop(own.model, config, batches, Report(run / "train.log", "loop", quiet=True), checkpoints=Checkpoints(run, own)), own


def weights(trained: Trained) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in trained.model.named_parameters() if value.requires_grad}


def entries(loop: Loop) -> list[dict[str, float]]:
    return [{key: value for key, value in entry.items() if key != "examples_per_second"} for entry in loop.state.log_history]
