"""The directory of a run: which run may use it, which files in it belong to the run, and which checkpoint a run resumes from.

Checkpoints are recognized by their manifest, result files by their format, everything else by `run.json`. No other file is ever removed
or overwritten. Files of an older run are only removed when the run that replaces it is about to take its first step.
"""

import contextlib
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Literal

import yaml

from kava.checkpoint import read_kava_config
from kava.config import Config, load_config, recorded_config
from kava.config.differences import named_differences
from kava.config.files import read_sections
from kava.config.fingerprint import MAY_CHANGE_ON_RESUME
from kava.errors import UserError, describe_os_error
from kava.results import (
    BEST_CHECKPOINT,
    RESULT_FORMAT,
    RUN_CONFIG,
    TRAINING_DONE,
    Record,
    parse_record,
    read_mapping,
    rows_path,
    trained_fingerprint,
    write_text,
)
from kava.runtime import processes
from kava.runtime.atomic import MANIFEST, discard, is_sealed, recover, tidy, verify, write_atomic
from kava.runtime.lock import locked
from kava.train.progress import TRAIN_LOG
from kava.train.resume import checkpoints, step_of
from kava.train.state import STATE

RUN, CONFIG, LOGS = "run.json", RUN_CONFIG, "logs"
# Files of a checkpoint that only resuming needs; a best checkpoint consists of the others.
_ONLY_TO_RESUME = ("*.pt", "*.pth", "*.bin", STATE)
_EVENTS = re.compile(r"events\.out\.tfevents\..*\.(\d+)\.\d+(\.v2)?")


class Done(Record):
    """`training_done.json`: how a finished run ended. `seconds` is the time since the run was last started or resumed."""

    config_fingerprint: str
    seed: int
    accuracy: float
    steps: int
    skipped_batches: int = 0
    seconds: float


class Begun(Record):
    """`run.json`: a run has begun here. `tracker_id` is its W&B id; `processes` are the process ids in its TensorBoard file names."""

    format: Literal["kava.run/1"] = "kava.run/1"
    quick_test: bool
    tracker_id: str
    processes: list[int]


@contextmanager
def lock_output_dir(directory: Path) -> Iterator[None]:
    """Create the directory and keep other runs out of it; all processes of a run call this.

    Raises:
        UserError: it cannot be created, or another run is using it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output directory {directory} cannot be made ({error.strerror}); choose another --output_dir") from None
    with contextlib.ExitStack() as held:
        problem = ""
        if processes.is_main():
            try:
                held.enter_context(locked(directory))
                recover(directory / BEST_CHECKPOINT)
            # Raised by all processes below: the others wait for the result of this one.
            except UserError as error:
                problem = str(error)
            except OSError as error:
                problem = describe_os_error(error) or f"{directory} cannot be used: {error}"
        if problem := processes.gather([problem])[0]:
            raise UserError(problem)
        yield


def check_output_dir(directory: Path, *, resume: bool, overwrite: bool, quick_test: bool) -> None:
    """Refuse a directory whose content a run would overwrite.

    Raises:
        UserError: it holds a run that is neither resumed nor overwritten, or files of another origin under names that a run uses;
            or both `resume` and `overwrite` are set.
    """
    if resume and overwrite:
        raise UserError("--resume continues a run and --overwrite deletes it: give one of them")
    ours = _begun(directory) is not None or _trained(directory) is not None or _is_dump(directory / CONFIG)
    foreign = [] if ours else [name for name in (CONFIG, TRAIN_LOG, TRAINING_DONE, RUN, BEST_CHECKPOINT) if _holds(directory / name)]
    foreign += [] if ours else [path.name for path in checkpoints(directory) if _holds(path)]
    if foreign:
        raise UserError(
            f"cannot write a run into {directory}: no kava run wrote its {foreign[0]}; choose another --output_dir, or move it away"
        )
    trained, begun = _trained(directory), _begun(directory)
    if trained and not (resume or overwrite or (quick_test and begun is not None and begun.quick_test)):
        raise UserError(
            f"{directory} holds {trained}: --resume continues it, --overwrite deletes it and starts again; or choose another --output_dir"
        )


def create_run_record(directory: Path, *, resume: bool, quick_test: bool) -> Begun:
    """The record of a new run, or of the resumed run with this process added."""
    before = _begun(directory) if resume else None
    if before is None:
        return Begun(quick_test=quick_test, tracker_id=uuid.uuid4().hex[:12], processes=[os.getpid()])
    return before.model_copy(update={"quick_test": quick_test, "processes": [*before.processes, os.getpid()]})


def begin(directory: Path, config: Config, run: Begun, *, resume: bool) -> None:
    """Remove what the run replaces, and record that it has begun. The main process calls this when everything else is ready."""
    if resume:
        tidy(directory)
        (directory / TRAINING_DONE).unlink(missing_ok=True)
    else:
        _clear(directory, _begun(directory))
    write_text(directory / RUN, json.dumps(run.model_dump(), indent=2) + "\n")
    write_text(directory / CONFIG, _dump(config))


def finished(directory: Path, config: Config) -> Done | None:
    """How the run in this directory ended; None if it has not ended, or its best checkpoint is lost. All processes call this.

    Raises:
        UserError: it was a run of another configuration, its marker file cannot be read, or the processes find different runs.
    """
    path, cure, done = directory / TRAINING_DONE, "remove it to go on from the newest checkpoint", None
    if path.exists():
        done = parse_record(Done, read_mapping(path, "marker of a finished run", cure), str(path), cure)
        if trained_fingerprint(directory, done.config_fingerprint) != config.fingerprint() or done.seed != config.training.seed:
            found = ""
            with contextlib.suppress(UserError):
                found = named_differences(_begun_with(directory).to_dict(), config.to_dict(), MAY_CHANGE_ON_RESUME)
            named = f" ({found})" if found else ""
            raise UserError(f"{directory} holds a finished run of another configuration{named}; choose another --output_dir")
        if verify(directory / BEST_CHECKPOINT) is not None:
            done = None
    _agree(directory, "a finished run" if done else "no finished run")
    return done


def refuse_other_settings(directory: Path, config: Config, newest: Path | None) -> None:
    """Refuse to resume from a checkpoint (None: to start again over those that are there) with other settings than the run began with.

    Raises:
        UserError: the settings differ; the message names them.
    """
    if (directory / CONFIG).exists() and any((*checkpoints(directory), *directory.glob(BEST_CHECKPOINT))):
        base = str(read_kava_config(newest).get("base_fingerprint", "")) if newest else ""
        refuse_other(f"the unfinished run in {directory}", _begun_with(directory), config, base)


def refuse_other(what: str, old: Config, config: Config, base_fingerprint: str) -> None:
    """Refuse configurations that differ in a setting that affects steps. `model.name` may differ if the base's fingerprint is known."""
    may_change = {*MAY_CHANGE_ON_RESUME, *(["model.name"] if base_fingerprint else [])}
    if found := named_differences(old.to_dict(), config.to_dict(), may_change):
        raise UserError(f"{what} has {found}: give the same settings again, or choose another --output_dir")


def _begun_with(directory: Path) -> Config:
    path = directory / CONFIG
    return recorded_config(read_sections(path), str(path))


def find_resume_checkpoint(directory: Path) -> Path | None:
    """The newest undamaged checkpoint, or None to start from the beginning. All processes call this.

    A lost best checkpoint is copied from the checkpoint of the same step; without one, an older checkpoint is returned to train it again.

    Raises:
        UserError: the best checkpoint is lost and cannot be restored in either way, or the processes find different checkpoints.
    """
    # Checked one by one, because a checkpoint can take a minute to read.
    whole = (path for path in checkpoints(directory) if _is_whole(path))
    newest, best = next(whole, None), directory / BEST_CHECKPOINT
    if newest is None and checkpoints(directory):
        _say(f"{directory} has no undamaged checkpoint; starting from the beginning")
    step = read_kava_config(newest).get("step") if newest else None
    problem = verify(best) if newest or (directory / TRAINING_DONE).exists() else None
    if newest and step is None:
        problem = None  # no validation came before this checkpoint
    # Everything is read before the main process makes the best checkpoint again.
    _agree(directory, f"{newest.name if newest else 'no checkpoint'}{' and no whole best checkpoint' if problem else ''}")
    if problem is None:
        return newest
    source = next((path for path in chain([newest] if newest else [], whole) if _is_source(path, int(step or 0))), None)
    if source is None:
        cure = "copy it back, or train again with --overwrite"
        also = f"; {newest} can be evaluated as it is" if newest else ""
        raise UserError(f"{best} is lost ({problem}), and no earlier checkpoint is left to restore it from: {cure}{also}")
    if step_of(source) != step:
        _say(f"{best} is lost ({problem}); going back to {source.name}, from before it, to make it again")
        return source
    _say(f"{best} is lost ({problem}); made again from {source.name}, which has the same weights")
    if processes.is_main():
        write_atomic(best, lambda staging: _copy_weights(source, staging))
    processes.wait()
    return newest


def _is_source(checkpoint: Path, step: int) -> bool:
    """Whether a lost best checkpoint of this step can be copied from a checkpoint, or made again by training on from it."""
    return step_of(checkpoint) < step or (step_of(checkpoint) == step and read_kava_config(checkpoint).get("step") == step)


def _agree(directory: Path, found: str) -> None:
    """Refuse to go on where processes find different things in a directory."""
    everyone = processes.gather([found])
    other = next((rank for rank, its in enumerate(everyone) if its != everyone[0]), None)
    if other is not None:
        raise UserError(
            f"process 0 finds {everyone[0]} in {directory}, process {other} {everyone[other]}: "
            "give an --output_dir on a disk that all machines of the run share"
        )


def _is_whole(checkpoint: Path) -> bool:
    problem = verify(checkpoint)
    if problem is not None:
        _say(f"checkpoint {checkpoint} is damaged ({problem}); trying an older one")
    return problem is None


def _copy_weights(checkpoint: Path, staging: Path) -> None:
    shutil.copytree(checkpoint, staging, ignore=shutil.ignore_patterns(MANIFEST, *_ONLY_TO_RESUME), dirs_exist_ok=True)


def _say(line: str) -> None:
    print(f"kava: {line}", file=sys.stderr, flush=True)


def _begun(directory: Path) -> Begun | None:
    try:
        return Begun.model_validate(json.loads((directory / RUN).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return None


def _trained(directory: Path) -> str | None:
    """Description of the finished or unfinished run in a directory; None if there is none."""
    with contextlib.suppress(UserError):
        done = parse_record(Done, read_mapping(directory / TRAINING_DONE, "", ""), "", "")
        return f"a finished run ({done.steps} steps)"
    newest = next((path for path in [*checkpoints(directory), directory / BEST_CHECKPOINT] if is_sealed(path)), None)
    return f"an unfinished run ({newest.name})" if newest else None


def _holds(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def _dump(config: Config) -> str:
    text: str = yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
    return text


def _is_dump(path: Path) -> bool:
    """Whether a configuration file is exactly as a run writes it, so that it is not a file of the user."""
    try:
        return path.is_file() and path.read_text(encoding="utf-8") == _dump(load_config(path))
    except (UserError, OSError, ValueError):
        return False


def _clear(directory: Path, begun: Begun | None) -> None:
    """Remove all files of an older run, so that none of them is mistaken for a file of the new run."""
    for path in [*checkpoints(directory), *directory.glob("bad_batch-*"), directory / BEST_CHECKPOINT]:
        if is_sealed(path):
            discard(path)
    for events in (directory / LOGS).glob("events.out.tfevents.*") if begun else []:
        if (found := _EVENTS.fullmatch(events.name)) and begun and int(found[1]) in begun.processes:
            events.unlink(missing_ok=True)
    for result in directory.glob("results_*.yaml"):
        with contextlib.suppress(UserError):
            if read_mapping(result, "", "").get("format") == RESULT_FORMAT:
                result.unlink()
                rows_path(result).unlink(missing_ok=True)
    for name in (TRAINING_DONE, TRAIN_LOG, RUN):
        (directory / name).unlink(missing_ok=True)
