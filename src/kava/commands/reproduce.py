"""`kava reproduce`: a whole suite, from pretraining to tables."""

from dataclasses import dataclass

from kava.commands.options import Overridable, Positional, output_directory


@dataclass
class Reproduce(Overridable):
    """Run a suite (methods x data sets x seeds) and make its tables. Finished steps are skipped, unfinished ones continue.

    The suite's last run, usually the method in question, starts first: where time may run out, write it last.
    Any configuration field that the runs do not set themselves, as they do method and seed, can be overridden: --training.max_steps 100.
    """

    suite: Positional[str]
    """A suite file, or its name in suites/."""
    output_dir: str | None = None
    """Directory for the runs and tables (default: outputs/<suite>)."""
    seeds: tuple[str, ...] = ()
    """Seeds to use in place of the suite's."""
    variants: tuple[str, ...] = ()
    """Run only these variants of the suite (default: all)."""
    runs: tuple[str, ...] = ()
    """Run only these runs of the suite (default: all)."""
    datasets: tuple[str, ...] = ()
    """Use only these data sets of the suite (default: all)."""
    parallel: int = 0
    """Number of runs in parallel (default: one per GPU, or one per two CPU cores but at least two)."""
    quick_test: bool = False
    """Only a few steps and a few questions per run."""
    tables_only: bool = False
    """Only make the tables from existing results; run nothing."""

    def run(self) -> int:
        from kava.errors import at_least
        from kava.experiment.multi_seed import read_seeds
        from kava.experiment.reproduce import reproduce
        from kava.experiment.suite import suite_path

        at_least(0, parallel=self.parallel)
        path = suite_path(self.suite)
        output_dir = output_directory(self.output_dir, path.stem, self.quick_test)
        return reproduce(
            path, output_dir, self.overrides, seeds=read_seeds(self.seeds), variants=self.variants, runs=self.runs,
            datasets=self.datasets, parallel=self.parallel, quick_test=self.quick_test, tables_only=self.tables_only,
        ).exit_code  # fmt: skip
