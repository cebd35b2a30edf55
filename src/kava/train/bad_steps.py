"""Steps with non-finite numbers: each is saved for `kava replay` and skipped, or ends the run; it never changes the weights."""

import sys

from torch import Tensor

from kava.errors import UserError
from kava.runtime import processes
from kava.train.checkpoints import Checkpoints
from kava.train.guard import RecordedBatch, all_finite, explain, shown
from kava.train.replay import save_step
from kava.train.state import State


class BadSteps:
    """Keeps bad steps from the optimizer.

    Args:
        checkpoints: checkpoints of the run; bad steps are saved in the same directory.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints

    def check_and_skip(self, seen: list[RecordedBatch], norm: Tensor, state: State, *, scaled: bool) -> bool:
        """Whether to skip a step. The host waits for one number from the device, once per step.

        Args:
            seen: the micro-batches of the step.
            norm: norm of the gradient.
            state: state of the run before the step; its count of skipped steps is updated.
            scaled: whether infinite gradients may come from the loss scale (fp16); its scaler skips those steps itself.

        Raises:
            UserError: more bad steps than `training.max_bad_batches`.
        """
        if all_finite([one.values["loss"] for one in seen], None if scaled else norm, processes.world_size()):
            return False
        trained, step = self.checkpoints.trained, state.global_step + 1
        seen = [one for one in seen if len(one.values["loss"])]
        several = processes.world_size() > 1
        problem, examples = explain(seen, float(norm), " of this process" if several else "")
        rank = f"-rank{processes.rank()}" if several else ""
        place = self.checkpoints.run / f"bad_batch-{step}{rank}"
        save_step(place, trained, seen, step, problem, examples, float(norm), self.checkpoints.weights())
        allowed = trained.config.training.max_bad_batches
        message = f"step {step}: {problem}{f' ({shown(examples)})' if examples else ''}; kava replay {place} repeats the step"
        if state.skipped_batches >= allowed:
            cure = f"continue without such batches: --resume --training.max_bad_batches {allowed + 1}"
            raise UserError(f"{message}; lower training.learning_rate, fix the data, or {cure}")
        state.skipped_batches += 1
        print(f"kava: {message}; skipped, {state.skipped_batches} of at most {allowed}", file=sys.stderr, flush=True)
        return True
