"""`kava run-multi-seed`, `python run_multi_seed.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from kava.experiment.multi_seed import Plan, SeedOutcome


@dataclass
class RunMultiSeed:
    """Train each seed, evaluate it, aggregate. Done steps are skipped, unfinished ones go on. Any field of
    the configuration is an override: --training.batch_size 64.

    Exit code 0: all seeds done; 1: a seed failed (the others are kept); stopped by a signal: the exit code of the step that it stopped.
    """

    config: str
    """A configuration file, or its name in configs/."""
    seeds: tuple[str, ...] = ("42", "123", "456")
    """Random seeds, such as 42 123 456, or 42,123,456 as the PowerShell script takes them."""
    output_dir: str | None = None
    """Where the seeds go (default: outputs/<config>_multi_seed)."""
    datasets: tuple[str, ...] = ()
    """Names in the configuration's evaluation.datasets, or paths (default: all of the configuration's)."""
    parallel: int = 1
    """Seeds side by side; on several GPUs each gets one in turn, on CPUs each gets its share of the threads."""
    quick_test: bool = False
    """A few steps and a few questions per seed, in a directory of their own: does everything work?"""
    use_wandb: bool = False
    """Log to Weights & Biases too."""
    aggregate: bool = True
    """Write aggregated_results.{yaml,json}; --no_aggregate where each seed is a job of its own."""

    overrides: ClassVar[dict[str, Any]] = {}

    def run(self) -> int:
        from rich.console import Console

        from kava.errors import UserError
        from kava.experiment.multi_seed import RUN_LOG, exit_code, run_plans

        if self.parallel < 1:
            raise UserError(f"--parallel {self.parallel}: give the number of seeds to run side by side, at least 1")
        plan = self._plan()
        console = Console(highlight=False, markup=False)
        outcomes, stopped = run_plans([plan], min(self.parallel, len(plan.seeds)), lambda line: console.print(line, soft_wrap=True))
        for outcome in outcomes:
            if outcome.tail:
                log = plan.seed_dir(outcome.seed) / RUN_LOG
                console.print(f"\nseed {outcome.seed}: the last lines of {log}\n{outcome.tail}", soft_wrap=True)
        if self.aggregate:
            _aggregate(plan, outcomes, console)
        _show(plan, outcomes, console)
        return exit_code(outcomes, stopped)

    def _plan(self) -> "Plan":
        from kava.config import config_path, load_config
        from kava.config.overrides import as_flags
        from kava.config.quick_test import quick_test
        from kava.errors import UserError
        from kava.experiment.multi_seed import Plan, read_seeds, trust_flags
        from kava.results import checked_name

        if "training.seed" in self.overrides:
            raise UserError("--training.seed: give the seeds with --seeds")
        seeds = read_seeds(self.seeds)
        if not seeds:
            raise UserError("--seeds: give at least one seed")
        path = config_path(self.config)
        name = checked_name(path.stem, "configuration")
        config = load_config(path, self.overrides)
        if self.quick_test:
            config = quick_test(config, self.overrides)
        flags = ["--quick_test"] if self.quick_test else []
        default_dir = f"outputs/{name}_quick_test_multi_seed" if self.quick_test else f"outputs/{name}_multi_seed"
        return Plan(
            config=str(path),
            name=name,
            output_dir=Path(self.output_dir or default_dir),
            seeds=seeds,
            datasets=_datasets(self.datasets, config.evaluation.datasets),
            fingerprint=config.fingerprint(),
            train_flags=[*flags, *(["--use_wandb"] if self.use_wandb else []), *as_flags(self.overrides)],
            evaluate_flags=[*flags, *trust_flags(config)],
        )


def _datasets(asked: tuple[str, ...], known: dict[str, str]) -> dict[str, str]:
    from kava.errors import UserError, nearest
    from kava.results import checked_name, dataset_label

    chosen: dict[str, str] = {}
    for text in asked or tuple(known):
        if text not in known and not Path(text).exists():
            raise UserError(f"data set '{text}' is neither in the configuration's evaluation.datasets nor a path{nearest(text, known)}")
        name = checked_name(dataset_label(text, known), "data set")
        if name in chosen:
            raise UserError(f"data set '{name}' is given twice; give each once")
        chosen[name] = text
    return chosen


def _aggregate(plan: "Plan", outcomes: "list[SeedOutcome]", console: Any) -> None:
    from kava.experiment.collect import collect, write_aggregate
    from kava.report.reference import load_reference
    from kava.report.table import show
    from kava.report.tables import result_tables

    if any(outcome.problem for outcome in outcomes):
        # A mean over two of three seeds must not pass for the number that was asked for.
        console.print("not aggregated, for not every seed is done: the same command again goes on where this one ended", soft_wrap=True)
        return
    group, problems = collect(plan, plan.name, plan.name)
    for problem in problems:
        console.print(f"left out: {problem}", soft_wrap=True)
    if group is not None:
        show(result_tables([(group, plan.name)], load_reference()), console)
        console.print(f"aggregated: {write_aggregate(plan, group)}", soft_wrap=True)


def _show(plan: "Plan", outcomes: "list[SeedOutcome]", console: Any) -> None:
    from kava.report.table import Cell, Table, show

    rows = []
    for outcome in outcomes:
        cells = [f"{100 * outcome.results[name].metrics.accuracy:.1f}" if name in outcome.results else "-" for name in plan.datasets]
        rows.append([Cell(text) for text in (str(outcome.seed), *cells, outcome.problem or "done")])
    show([Table("seeds", f"{plan.name}: accuracy in percent, each seed", "", ["seed", *plan.datasets, "state"], rows)], console)
