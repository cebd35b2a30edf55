"""`kava aggregate`, `python aggregate_multi_seed.py`."""

from dataclasses import dataclass


@dataclass
class Aggregate:
    """Compute the mean and sample standard deviation over the seeds of one configuration. Runs that do not belong together are refused."""

    seed_dirs: tuple[str, ...]
    """Directories of the seeds, each with its results_<dataset>.yaml files."""
    datasets: tuple[str, ...] = ()
    """Data sets to aggregate; every seed must have a result for each of them (default: those in the first seed's config.yaml)."""
    model_name: str | None = None
    """Name to show in tables (default: the configuration's)."""
    output_json: str | None = None
    """JSON file to write."""
    output_yaml: str | None = None
    """YAML file to write; with neither, the YAML is printed."""

    def run(self) -> None:
        from rich.console import Console

        from kava.errors import UserError
        from kava.report.aggregate import combine, entry_name, read_run, recorded_datasets
        from kava.report.aggregate_file import to_yaml, write_aggregates
        from kava.report.group import Group
        from kava.report.reference import load_reference
        from kava.report.table import show
        from kava.report.tables import label_of, result_tables

        if not self.seed_dirs:
            raise UserError("give at least one directory with --seed_dirs")
        datasets = self.datasets or recorded_datasets(self.seed_dirs[0])
        runs = [read_run(directory, datasets) for directory in self.seed_dirs]
        name, aggregate = entry_name(runs, self.model_name), combine(runs, self.model_name)
        if self.output_json is None and self.output_yaml is None:
            print(to_yaml({name: aggregate}), end="")
            return
        write_aggregates({name: aggregate}, self.output_json, self.output_yaml)
        reference = load_reference()
        group = Group(aggregate.model_name, aggregate)
        show(result_tables([(group, label_of(group, {}, reference))], reference, title=name), Console(highlight=False))
