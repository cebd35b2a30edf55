"""Train and evaluate several seeds of one configuration; finished steps are skipped and unfinished ones are resumed.

    run_plans([plan], parallel=2, say=print)

Every step is a separate process (`python -m kava train ...`), so that a crash, an out-of-memory kill or a failed seed does not affect
the others.
"""

import contextlib
import json
import os
import queue
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kava.config import Config, load_config
from kava.config.differences import why_another
from kava.config.files import read_sections
from kava.config.overrides import as_flags
from kava.config.quick_test import quick_test
from kava.data.sources.benchmarks import BENCHMARKS
from kava.errors import UserError, nearest
from kava.experiment.child_processes import Children, StoppedError, environments, visible_gpus
from kava.results import (
    BEST_CHECKPOINT,
    RUN_CONFIG,
    TRAINING_DONE,
    Verified,
    checked_name,
    dataset_label,
    read_result,
    read_verified,
    result_path,
    trained_fingerprint,
)
from kava.runtime.atomic import verify
from kava.runtime.lock import LOCK_FILE, locked

RUN_LOG = "run.log"


@dataclass(frozen=True)
class Plan:
    """What to run. `datasets`: name in file names -> data set passed to `evaluate`; `settings`: the configuration that all flags give."""

    config: str
    name: str
    output_dir: Path
    seeds: Sequence[int]
    datasets: dict[str, str]
    settings: Config
    train_flags: list[str] = field(default_factory=list)
    evaluate_flags: list[str] = field(default_factory=list)
    variant: str = ""

    @property
    def label(self) -> str:
        """Name of the run in progress lines."""
        return f"{self.variant} {self.name}".strip()

    @property
    def fingerprint(self) -> str:
        return self.settings.fingerprint()

    def seed_dir(self, seed: int) -> Path:
        return self.output_dir / f"seed_{seed}"


def choose_datasets(asked: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """Return the data sets to evaluate on, by the name in their result files. A training takes hours, and its evaluation comes last.

    Args:
        asked: names in `evaluation.datasets`, names of benchmarks, or paths; empty: all of the configuration.
        known: the configuration's `evaluation.datasets`.

    Raises:
        UserError: a name is unknown, or given twice.
    """
    chosen: dict[str, str] = {}
    for text in asked or tuple(known):
        if text not in known and text not in BENCHMARKS and not Path(text).exists():
            what = "neither in the configuration's evaluation.datasets nor a benchmark or a path"
            raise UserError(f"data set '{text}' is {what}{nearest(text, [*known, *BENCHMARKS])}")
        name = checked_name(dataset_label(text, known), "data set")
        if name in chosen:
            raise UserError(f"data set '{name}' is given twice; give each once")
        chosen[name] = text
    return chosen


def make_plan(
    path: Path, name: str, output_dir: Path, seeds: Sequence[int], overrides: dict[str, Any], *, short: bool = False,
    datasets: Sequence[str] = (), variant: str = "",
) -> Plan:  # fmt: skip
    """Return the plan of one configuration; the configuration is checked before anything runs.

    Args:
        path: configuration file.
        name: name of the run.
        output_dir: directory that holds a directory per seed.
        seeds: seeds to train with.
        overrides: settings, by dotted key, that replace those of the file.
        short: only a few steps and a few questions (`--quick_test`).
        datasets: see `choose_datasets`.
        variant: name of the variant of a suite.

    Raises:
        UserError: the configuration is not valid, or a data set is unknown.
    """
    config = load_config(path, overrides)
    if short:
        config = quick_test(config, overrides)
    # Only for training: the checkpoint stores the configuration, which includes the question limit of a quick test.
    flags = ["--quick_test"] if short else []
    # Every command that loads a checkpoint needs these flags again: permission to run remote code, and the CPU as the device.
    trust = ["--model.trust_remote_code", "true"] if config.model.trust_remote_code else []
    place = ["--system.device", "cpu"] if config.system.device == "cpu" else []
    return Plan(
        config=str(path), name=name, output_dir=output_dir, seeds=seeds, datasets=choose_datasets(datasets, config.evaluation.datasets),
        settings=config, train_flags=[*flags, *as_flags(overrides)], evaluate_flags=[*trust, *place],
        variant=variant,
    )  # fmt: skip


def read_seeds(words: Sequence[str]) -> list[int]:
    """Parse seeds that are separated by spaces or commas.

    Raises:
        UserError: a word is not a valid seed, or a seed is given twice.
    """
    seeds = [word for text in words for word in text.replace(",", " ").split()]
    if not all(word.isascii() and word.isdigit() for word in seeds) or len({*map(int, seeds)}) != len(seeds):
        raise UserError(f"--seeds {' '.join(words)}: give whole numbers such as 42 123 456, each once and not negative")
    return [int(word) for word in seeds]


def read_plan_result(plan: Plan, seed: int, dataset: str) -> Verified:
    """Read a result of a plan and check that it belongs to the plan.

    Raises:
        UserError: the result or its rows are missing or broken, or belong to another checkpoint, configuration, seed or data set.
    """
    path = result_path(plan.seed_dir(seed), dataset)
    verified = read_verified(path)
    verified.needed_rows()
    result = verified.result
    if result.dataset != dataset or result.data.asked not in (None, plan.datasets[dataset]):
        raise UserError(f"result file {path} was measured on {result.data.asked or result.dataset}, not on {dataset}; evaluate again")
    if result.run.seed != seed:
        raise UserError(f"result file {path} is of seed {result.run.seed}, not {seed}; evaluate again")
    if result.run.fingerprint != plan.fingerprint:
        why = why_another(result.run.config, plan.settings.to_dict())
        cure = f"run it again in another directory, or give the settings that {plan.seed_dir(seed)} was run with"
        raise UserError(f"result file {path} is of another configuration than {plan.name}'s{why}; {cure}")
    return verified


@dataclass
class SeedOutcome:
    """Outcome of one seed: one line on a problem, the end of the failed step's output, the exit code of a step that a signal stopped."""

    seed: int
    directory: Path
    problem: str | None = None
    tail: str = ""
    returncode: int = 0


def run_plans(plans: Sequence[Plan], parallel: int, say: Callable[[str], None]) -> tuple[list[SeedOutcome], int | None]:
    """Run every seed of every plan, `parallel` at a time; return the outcomes in order and the signal that stopped the run, if any."""
    children = Children()
    jobs = [(plan, seed) for plan in plans for seed in plan.seeds]
    slots: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
    for environment in environments(parallel, visible_gpus(), os.cpu_count() or 1):
        slots.put(environment)

    def one(job: tuple[Plan, int]) -> SeedOutcome:
        environment = slots.get()
        try:
            return _Seed(*job, children, environment, say).run()
        finally:
            slots.put(environment)

    with children.passing_signals(), ThreadPoolExecutor(parallel) as pool:
        outcomes = list(pool.map(one, jobs))
    return outcomes, children.stop_signal


def exit_code(outcomes: Sequence[SeedOutcome], stopped: int | None) -> int:
    """Return the exit code: 0; 1 if a seed failed; or, after a signal, that of the interrupted step, else 128 + the signal number."""
    if stopped is not None:
        return max((outcome.returncode for outcome in outcomes if outcome.returncode > 0), default=128 + stopped)
    return int(any(outcome.problem for outcome in outcomes))


class _StepError(Exception):
    """A step ended with an error."""


@dataclass
class _Seed:
    plan: Plan
    seed: int
    children: Children
    environment: dict[str, str]
    say: Callable[[str], None]

    def run(self) -> SeedOutcome:
        outcome = SeedOutcome(self.seed, self.directory)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with locked(self.directory) as self.inherit:
                self._train(outcome)
                self._evaluate(outcome)
        except _StepError:
            self._say(f"{outcome.problem}")
        except StoppedError:
            outcome.problem = outcome.problem or "stopped by a signal"
        except (UserError, OSError) as error:
            outcome.problem = str(error)
            self._say(f"{error}")
        return outcome

    @property
    def directory(self) -> Path:
        return self.plan.seed_dir(self.seed)

    def _train(self, outcome: SeedOutcome) -> None:
        if self._is_trained() and verify(self.directory / BEST_CHECKPOINT) is None:
            self._say("training is done")
            return
        # A training that has begun continues from its newest checkpoint.
        begun = any(entry.name not in (RUN_LOG, LOCK_FILE) for entry in self.directory.iterdir())
        self._say(f"training{' continues' if begun else ''} in {self.directory}")
        flags = ["--config", self.plan.config, "--output_dir", str(self.directory), "--seed", str(self.seed)]
        self._step(outcome, "train", [*flags, *(["--resume"] if begun else []), *self.plan.train_flags])
        if not self._is_trained():
            raise UserError(f"training ended without {self.directory / TRAINING_DONE}; see {self.directory / RUN_LOG}")

    def _evaluate(self, outcome: SeedOutcome) -> None:
        """Evaluate on all data sets that have no result yet, in one process, which loads the model once."""
        missing = [dataset for dataset in self.plan.datasets if not self._is_evaluated(dataset)]
        paths = {dataset: result_path(self.directory, dataset) for dataset in self.plan.datasets}
        if missing:
            self._say(f"evaluating on {', '.join(missing)}")
            flags = ["--checkpoint_dir", str(self.directory / BEST_CHECKPOINT)]
            flags += ["--eval_dataset", *(self.plan.datasets[dataset] for dataset in missing)]
            flags += ["--output", *(str(paths[dataset]) for dataset in missing)]
            self._step(outcome, "evaluate", [*flags, *self.plan.evaluate_flags])
        for dataset, path in paths.items():
            metrics = read_result(path).metrics
            self._say(f"{dataset} {100 * metrics.accuracy:.1f} % of {metrics.total}")

    def _say(self, line: str) -> None:
        """Print a line with the name of the run; a training prints the name of its configuration, which several runs may share."""
        own = re.sub(rf"^\S+ seed {self.seed}: ", "", line)
        with contextlib.suppress(OSError, SystemExit):  # a full disk or a closed pipe, for which rich exits, does not end the children
            self.say(f"{self.plan.label} seed {self.seed}: {own}")

    def _step(self, outcome: SeedOutcome, command: str, flags: list[str]) -> None:
        words = [sys.executable, "-m", "kava", command, *flags]
        finished = self.children.run(words, self.directory / RUN_LOG, self.environment, self.inherit, watch=self._say)
        if finished.returncode != 0:
            stopped = self.children.stop_signal is not None
            outcome.problem, outcome.tail = f"{command}: {finished.reason}", finished.tail
            outcome.returncode = finished.returncode if stopped else 0
            raise StoppedError if stopped else _StepError

    def _is_trained(self) -> bool:
        """Return whether the training is finished.

        Raises:
            UserError: the training was run with another configuration than the plan's.
        """
        marker = self.directory / TRAINING_DONE
        try:
            recorded: Any = json.loads(marker.read_text(encoding="utf-8"))["config_fingerprint"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return False
        if not (self.directory / BEST_CHECKPOINT).is_dir():
            return False
        if trained_fingerprint(self.directory, str(recorded)) != self.plan.fingerprint:
            why, cure = "", "choose another --output_dir, or move it away"
            with contextlib.suppress(UserError):
                why = why_another(read_sections(self.directory / RUN_CONFIG), self.plan.settings.to_dict())
            raise UserError(f"{self.directory} holds a finished run of another configuration{why}; {cure}")
        return True

    def _is_evaluated(self, dataset: str) -> bool:
        """Whether the result on a data set and its rows are complete and match this run's checkpoint and the plan's data."""
        try:
            read_plan_result(self.plan, self.seed, dataset)
        except UserError:
            return False
        return True
