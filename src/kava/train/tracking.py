"""Where a run is followed: TensorBoard, W&B (also offline) and trackio, through the Trainer's own `report_to`.

Scalars (every loss term, learning rate, gradient norm, examples per second, validation accuracy) go there by themselves, because the
Trainer logs them. This file adds what it cannot: a picture per epoch of how alike the student's and the teacher's caches are.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from transformers import TrainerCallback

from kava.errors import UserError, nearest
from kava.explain.figures import similarity_figure
from kava.explain.record import Similarity

# Name in `report_to` -> package that it needs.
TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


def checked_trackers(names: Sequence[str]) -> list[str]:
    """The trackers to report to, each once.

    Raises:
        UserError: one is unknown or not installed.
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
    """Turn what W&B refuses (no login, no network) into one line for the user.

    Raises:
        UserError: W&B raised an error of its own inside the block.
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


class CacheFigures(TrainerCallback):
    """Sends `kv_similarity/keys` and `kv_similarity/values` to every tracker at the end of each epoch.

    Args:
        callbacks: of the Trainer, where the trackers are; looked through when there is something to send.
        compare: the cosines with the current weights; None where there is no trace to compare on.
    """

    def __init__(self, callbacks: Callable[[], Sequence[TrainerCallback]], compare: Callable[[], Similarity | None]) -> None:
        self.callbacks = callbacks
        self.compare = compare

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compare, draw, send."""
        if not state.is_world_process_zero or not args.report_to:
            return
        similarity = self.compare()
        if similarity is None:
            return
        pictures = {
            f"kv_similarity/{what}": _pixels(similarity_figure(layers, what))
            for what, layers in (("keys", similarity.keys), ("values", similarity.values))
        }
        if "tensorboard" in args.report_to:
            _to_tensorboard(self.callbacks(), pictures, state.global_step)
        if "wandb" in args.report_to:
            import wandb

            wandb.log({name: wandb.Image(picture) for name, picture in pictures.items()} | {"train/global_step": state.global_step})
        if "trackio" in args.report_to:
            import trackio

            trackio.log({name: trackio.Image(picture) for name, picture in pictures.items()} | {"train/global_step": state.global_step})


def _to_tensorboard(callbacks: Sequence[TrainerCallback], pictures: dict[str, Any], step: int) -> None:
    from transformers.integrations import TensorBoardCallback

    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            for name, picture in pictures.items():
                callback.tb_writer.add_image(name, picture, step, dataformats="HWC")


def _pixels(figure: Any) -> Any:
    """The figure as [height, width, 3] bytes."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
