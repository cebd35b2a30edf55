"""Checkpoints that a run can resume from."""

import re
from pathlib import Path

from peft import PeftModel

from kava.checkpoint import Trained
from kava.checkpoint.files import load_trained
from kava.model.build import load_base
from kava.runtime.atomic import discard

_CHECKPOINT = re.compile(r"checkpoint-[0-9]+")


def checkpoints(run: Path) -> list[Path]:
    """Resumable checkpoints of a run, newest first."""
    return sorted((path for path in run.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name)), key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written, from its name."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def keep_newest(run: Path, limit: int | None, step: int) -> None:
    """Discard all but the newest `limit` checkpoints up to a step (`training.save_total_limit`); `best_checkpoint` is never touched.

    Checkpoints of later steps do not count: they are damaged, or will be written again.
    """
    if limit is not None:
        for old in [path for path in checkpoints(run) if step_of(path) <= step][limit:]:
            discard(old)


def load_weights(directory: Path, trained: Trained) -> None:
    """Load the weights of a checkpoint into a model that was built in the same way."""
    model = trained.model.backbone.model
    if not isinstance(model, PeftModel):
        model.load_state_dict(load_base(str(directory), trained.config).state_dict())
    load_trained(directory, model, trained.model.projection)
