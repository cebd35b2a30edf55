"""`kava run-multi-seed`, `python run_multi_seed.py`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kava.commands.options import Overridable, output_directory

if TYPE_CHECKING:
    from kava.experiment.multi_seed import Plan


@dataclass
class RunMultiSeed(Overridable):
    """Train and evaluate each seed, then aggregate. Finished steps are skipped, unfinished ones continue. Any configuration field
    can be overridden: --training.batch_size 64.

    Exit code 0: all seeds done; 1: a seed failed (the others are kept), or the seeds do not belong together; after a signal: the exit code
    of the interrupted step.
    """

    config: str
    """A configuration file, or its name in configs/."""
    seeds: tuple[str, ...] = ("42", "123", "456")
    """Random seeds, such as 42 123 456, or 42,123,456 as in the PowerShell script."""
    output_dir: str | None = None
    """Directory for the runs of all seeds (default: outputs/<config>_multi_seed)."""
    datasets: tuple[str, ...] = ()
    """Names in evaluation.datasets, names of benchmarks (see `evaluate.py --help`), or paths; default: all of evaluation.datasets."""
    parallel: int = 1
    """Number of seeds to run in parallel; they are assigned to the GPUs in turn, or share the CPU threads equally."""
    quick_test: bool = False
    """Test the whole pipeline with a few steps and a few questions per seed, in a separate directory."""
    use_wandb: bool = False
    """Also log to Weights & Biases."""
    report_to: tuple[str, ...] = ("tensorboard",)
    """Trackers to log to: tensorboard, wandb, trackio; --report_to without a name: none."""
    aggregate: bool = True
    """Write aggregated_results.{yaml,json}; use --no_aggregate if each seed is a separate job."""

    def run(self) -> int:
        from rich.console import Console

        from kava.errors import UserError
        from kava.experiment.collect import collect_all
        from kava.experiment.progress_view import run_all
        from kava.report.aggregate_file import AGGREGATE_YAML
        from kava.report.reference import load_reference
        from kava.report.table import show
        from kava.report.tables import result_tables

        if self.parallel < 1:
            raise UserError(f"--parallel {self.parallel}: give the number of seeds to run side by side, at least 1")
        plan = self._plan()
        # A suite with one run, whose seed directories are where the guide expects them.
        plans = {("all", plan.name): plan}
        console = Console(highlight=False)
        code = run_all(plans, self.parallel, console)
        if code and self.aggregate:
            # A mean over two of three seeds must not be mistaken for the requested number.
            console.print("not aggregated, because not every seed is done: run the same command again to continue", soft_wrap=True)
        elif self.aggregate:
            groups = collect_all(plans, plan.name, console)
            if not groups:
                return 1
            show(result_tables([(group, plan.name) for group in groups.values()], load_reference()), console)
            console.print(f"aggregated: {plan.output_dir / AGGREGATE_YAML}", soft_wrap=True)
        return code

    def _plan(self) -> "Plan":
        from kava.config import config_path
        from kava.errors import UserError
        from kava.experiment.multi_seed import make_plan, read_seeds
        from kava.results import checked_name

        if "training.seed" in self.overrides:
            raise UserError("--training.seed: give the seeds with --seeds")
        seeds = read_seeds(self.seeds)
        if not seeds:
            raise UserError("--seeds: give at least one seed")
        path = config_path(self.config)
        name = checked_name(path.stem, "configuration")
        output_dir = output_directory(self.output_dir, name, self.quick_test, "_multi_seed")
        plan = make_plan(path, name, output_dir, seeds, self.overrides, short=self.quick_test, datasets=self.datasets)
        plan.train_flags.extend([] if self.report_to == ("tensorboard",) else ["--report_to", *self.report_to])
        plan.train_flags.extend(["--use_wandb"] if self.use_wandb else [])
        return plan
