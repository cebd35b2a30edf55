"""`kava train`, `python train.py`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kava.commands.options import Overridable

if TYPE_CHECKING:
    from pathlib import Path

# Where the guide's evaluation example looks for the checkpoint of a quick test.
QUICK_TEST_DIR = "checkpoints/test"


@dataclass
class Train(Overridable):
    """Train one method with one seed. Any configuration field can be overridden: --training.batch_size 64."""

    config: str | None = None
    """A configuration file, or its name in configs/ (default: the mini experiment)."""
    output_dir: str | None = None
    """Directory for checkpoints, logs and results (default: outputs/<config>_seed_<seed>)."""
    seed: int | None = None
    """Random seed, in place of training.seed."""
    use_wandb: bool = False
    """Also log to Weights & Biases (WANDB_MODE=offline keeps the logs on this machine)."""
    report_to: tuple[str, ...] = ("tensorboard",)
    """Trackers to log to: tensorboard, wandb, trackio; --report_to without a name: none."""
    quick_test: bool = False
    """Test the whole pipeline: a few dozen steps on a few examples, then twenty test questions."""
    resume: bool = False
    """Continue from the newest checkpoint in output_dir."""
    overwrite: bool = False
    """Delete the existing run in output_dir and start again."""

    def run(self) -> int:
        from kava.config import config_path, load_config
        from kava.runtime.processes import is_main, launched_to_split, leave

        path = config_path(self.config or "mini")
        split = {"system.fsdp": True} if launched_to_split() else {}
        config = load_config(path, split | self.overrides | ({} if self.seed is None else {"training.seed": self.seed}))
        output_dir = self.output_dir or (QUICK_TEST_DIR if self.quick_test else f"outputs/{path.stem}_seed_{config.training.seed}")
        if self.quick_test:
            from kava.config.quick_test import quick_test

            config = quick_test(config, self.overrides)
        from kava.explain.pictures import cache_pictures
        from kava.train.train import train

        trackers = [*self.report_to, *(["wandb"] if self.use_wandb else [])]
        how = {"resume": self.resume, "overwrite": self.overwrite, "quick_test": self.quick_test}
        outcome = train(config, output_dir, name=path.stem, report_to=trackers, pictures=cache_pictures, **how)
        leave()
        if not is_main():
            return outcome.exit_code
        if outcome.exit_code:
            print(f"stopped by a signal after step {outcome.steps}; continue with --resume --output_dir {output_dir}")
        else:
            accuracy = f"best validation accuracy {100 * outcome.accuracy:.1f} %"
            print(f"trained {outcome.steps} steps, {accuracy}: {outcome.output_dir}/best_checkpoint")
            if self.quick_test:
                _try_it(outcome.output_dir, next(iter(config.evaluation.datasets)))
        return outcome.exit_code


def _try_it(run: "Path", dataset: str) -> None:
    """Evaluate a quick test's checkpoint on a few test questions. A test set that is not available is reported and is no error."""
    from kava.errors import UserError
    from kava.evaluate.evaluate import Request, evaluate, print_result
    from kava.results import result_path

    try:
        result = evaluate(Request(str(run), dataset), result_path(run, dataset))
    except UserError as error:
        print(f"not evaluated on {dataset}: {error}")
        return
    print_result(result)
    print(f"written: {result_path(run, dataset)}")
