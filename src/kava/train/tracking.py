"""Experiment trackers: TensorBoard, W&B (also offline) and trackio.

Every log entry is sent to them: `train/` has loss terms, learning rate, gradient norm, examples per second and epoch; `eval/` has
validation accuracy, forward passes and seconds per question.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kava.config import Config
from kava.config.differences import flatten
from kava.errors import UserError, nearest
from kava.runtime import processes
from kava.train.run_directory import LOGS

# Project name in trackio, and in W&B if WANDB_PROJECT is not set; from the guide.
PROJECT = "kava-reproduction"
# Name in `report_to` -> required package.
TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


def checked_trackers(names: Sequence[str]) -> list[str]:
    """The names of the trackers to report to, without duplicates.

    Raises:
        UserError: a tracker is unknown or not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"--report_to {name}: no such tracker{nearest(name, TRACKERS)}")
        if find_spec(TRACKERS[name]) is None:
            option = "--use_wandb" if name == "wandb" else f"--report_to {name}"
            raise UserError(f"{option}: {TRACKERS[name]} is not installed; pip install {TRACKERS[name]}")
    return list(dict.fromkeys(names))


@contextmanager
def naming_wandb_errors(trackers: Sequence[str]) -> Iterator[None]:
    """Turn an error of W&B (no login, no network) into one line for the user.

    Raises:
        UserError: W&B raised one of its errors inside the block.
    """
    if "wandb" not in trackers:
        yield
        return
    import wandb

    try:
        yield
    except wandb.errors.Error as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(f"--use_wandb: {reason}; or set WANDB_MODE=offline, which keeps the run on this machine") from error


class Trackers:
    """The open trackers of one run; only the main process has any.

    Args:
        names: keys of `TRACKERS`.
        output_dir: TensorBoard writes to its `logs/`.
        title: name of the run in W&B and trackio.
        config: run configuration, shown by the trackers.
        run_id: id of the run in W&B, and part of its name in trackio, so that a resumed run, and no other, continues there.
    """

    def __init__(self, names: Sequence[str], output_dir: Path, title: str, config: Config, run_id: str) -> None:
        self.names = names = list(names) if processes.is_main() else []
        settings = flatten(config.to_dict())
        if "tensorboard" in names:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(output_dir / LOGS))
            self.board.add_text("config", "".join(f"    {key}: {value}\n" for key, value in settings.items()))
        if "wandb" in names:
            import wandb

            wandb.init(project=os.environ.get("WANDB_PROJECT", PROJECT), name=title, id=run_id, resume="allow", config=settings)
            wandb.define_metric("train/global_step")
            wandb.define_metric("*", step_metric="train/global_step", step_sync=True)
        if "trackio" in names:
            import trackio

            # trackio resumes a run by its name.
            trackio.init(project=PROJECT, name=f"{title} ({run_id})", resume="allow", config=settings)

    def log(self, entry: Mapping[str, float], step: int) -> None:
        """Send a log entry."""
        values = {f"eval/{key[5:]}" if key.startswith("eval_") else f"train/{key}": value for key, value in entry.items()}
        if "tensorboard" in self.names:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
            self.board.flush()
        for tracker in self._services():
            tracker.log(values | {"train/global_step": step})

    def show(self, pictures: Mapping[str, Any], step: int) -> None:
        """Send pictures by name, each [height, width, 3] bytes."""
        if "tensorboard" in self.names:
            for name, picture in pictures.items():
                self.board.add_image(name, picture, step, dataformats="HWC")
        for tracker in self._services():
            tracker.log({name: tracker.Image(picture) for name, picture in pictures.items()} | {"train/global_step": step})

    def _services(self) -> list[Any]:
        """W&B's and trackio's modules, which have the same functions."""
        return [import_module(name) for name in ("wandb", "trackio") if name in self.names]

    def close(self) -> None:
        """Close the trackers, which sends any remaining data."""
        if "tensorboard" in self.names:
            self.board.close()
        for tracker in self._services():
            tracker.finish()
