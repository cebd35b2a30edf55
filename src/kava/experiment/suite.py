"""A suite: methods x data sets x seeds in one small YAML file. Finished runs are skipped and interrupted ones are resumed.

title: The methods
config: mini
seeds: [42, 123, 456]
variants:
  equation: {dataset.cot_type: equation}
runs:
  no_cot: {method: no_cot}
  kava: {}
"""

from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kava.config import config_path
from kava.config.overrides import dotted
from kava.errors import UserError, nearest
from kava.experiment.multi_seed import Plan, make_plan
from kava.results import checked_name, read_mapping
from kava.runtime import shipped

SUITE_DIR = "suites"
SHARED = ("config", "seeds", "variants", "runs", "exceptions")  # the keys that define the runs


class Suite(BaseModel):
    """The content of a suite file.

    Attributes:
        title: heading of the tables.
        config: configuration that all runs start from.
        seeds: every run is trained with every seed.
        variants: name -> overrides, such as the form of the traces; each variant has its own tables.
        runs: name -> overrides, which replace the variant's; `config` among them replaces the suite's configuration.
        exceptions: variant -> run -> overrides for that run in that variant only; they replace both.
        datasets: evaluation sets of the configuration, or benchmarks, to evaluate on (default: all of the configuration's).
        runs_of: name of another suite, in the same folder, whose runs this one uses, so that one training serves several tables. Its
            keys in `SHARED` also apply here unless this file sets them. The output folders of both suites have the same parent.
        main: the run that the others are compared with (default: the last one).
        table: `accuracy` on every data set, or `efficiency` on the first (forward passes, tokens, seconds, cache bytes per question).
    """

    model_config = ConfigDict(extra="forbid")

    title: str
    config: str = "mini"
    seeds: list[int] = Field(min_length=1)
    variants: dict[str, dict[str, Any]] = Field(default={"all": {}}, min_length=1)
    runs: dict[str, dict[str, Any]] = Field(min_length=1)
    exceptions: dict[str, dict[str, dict[str, Any]]] = Field(default={})
    datasets: list[str] | None = None
    runs_of: str | None = None
    main: str | None = None
    table: Literal["accuracy", "efficiency"] = "accuracy"

    @field_validator("seeds")
    @classmethod
    def _each_seed_once(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"{seeds}: give each seed once, and none below 0")
        return seeds

    @model_validator(mode="after")
    def _names_are_of_what_there_is(self) -> "Suite":
        if self.main is not None:
            _check_named(self.main, self.runs, "main", "runs")
        for variant, by_run in self.exceptions.items():
            _check_named(variant, self.variants, "exceptions", "variants")
            for run in by_run:
                _check_named(run, self.runs, f"exceptions: {variant}", "runs")
        return self


def _check_named(name: str, existing: dict[str, dict[str, Any]], place: str, what: str) -> None:
    if name not in existing:
        raise ValueError(f"{place}: '{name}' is not one of the {what}{nearest(name, existing)}")


def suite_path(name: str) -> Path:
    """Find a suite file from its path or its name in `suites/`, of the working directory or else of the package.

    Raises:
        UserError: there is no such file.
    """
    if path := shipped.find(SUITE_DIR, name):
        return path
    known = [path.stem for path in shipped.listed(SUITE_DIR)]
    raise UserError(f"suite '{name}' is neither a file nor a name in {SUITE_DIR}/{nearest(name, known)}")


def read_suite(path: str | Path) -> Suite:
    """Read and check a suite file.

    Raises:
        UserError: the file is not valid; the message names the file and the key.
    """
    content = read_mapping(path, "suite", "correct it")
    if isinstance(owner := content.get("runs_of"), str):
        content = _shared_of(Path(path).with_name(f"{checked_name(owner, 'suite')}.yaml")) | content
    try:
        return Suite.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        hint = nearest(key, Suite.model_fields) if problem["type"] == "extra_forbidden" else ""
        raise UserError(f"suite {path}: {key}: {problem['msg']}{hint}") from None


def _shared_of(path: Path) -> dict[str, Any]:
    """Return the keys that define the runs, from the suite that owns the runs."""
    content = read_mapping(path, "suite", "correct runs_of, or make that file")
    return {key: content[key] for key in SHARED if key in content}


def plans_of(
    suite: Suite, output_dir: Path, overrides: dict[str, Any], *, short: bool = False, source: str = "the suite"
) -> dict[tuple[str, str], Plan]:
    """Return a plan per (variant, run), in the order of the file; every configuration is checked before anything runs.

    Args:
        suite: its runs.
        output_dir: directory that holds a directory per variant.
        overrides: settings, by dotted key, that replace those of every run.
        short: as in `make_plan`.
        source: name of the suite in error messages.

    Raises:
        UserError: a configuration is not valid, or an override is what each run sets itself; the message names the run.
    """
    plans, overrides = {}, dotted(overrides)
    for variant, run in product(suite.variants, suite.runs):
        layers = (suite.variants[variant], suite.runs[run], suite.exceptions.get(variant, {}).get(run, {}))
        # Key by key, so that a section given as a mapping leaves the other settings of that section as they are.
        merged = {key: value for layer in layers for key, value in dotted(layer).items()}
        for key, option, own in (("method", "--runs", "method" in merged), ("training.seed", "--seeds", True)):
            if own and key in overrides:
                raise UserError(f"--{key}: the runs of a suite have their own; choose among them with kava reproduce SUITE {option}")
        merged |= overrides
        try:
            path = config_path(str(merged.pop("config", suite.config)))
            plans[variant, run] = make_plan(
                path, checked_name(run, "run"), output_dir / checked_name(variant, "variant") / run, suite.seeds, merged, short=short,
                datasets=suite.datasets or (), variant="" if variant == "all" else variant,
            )  # fmt: skip
        except UserError as error:
            raise UserError(f"{source}, run {run if variant == 'all' else f'{variant}/{run}'}: {error}") from None
    return plans
