"""One training run, from a configuration to `best_checkpoint`."""

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from kava.checkpoint import Trained, fitting, read_kava_config, recorded_prompt_ids, refuse_other_base
from kava.config import Config, recorded_config
from kava.data.collate import build_collator
from kava.data.example import Example
from kava.data.sequences import builder_of
from kava.errors import UserError, report_out_of_memory
from kava.evaluate.accuracy import Evaluation, evaluate_accuracy
from kava.generate import Reasoner
from kava.model.build import build_model
from kava.model.requirements import check_requirements
from kava.results import TRAINING_DONE, write_text
from kava.runtime import processes
from kava.runtime.device import check_precision, choose_device, describe_device
from kava.runtime.hub import commit_of
from kava.runtime.provenance import collect
from kava.train.batches import StepBatches
from kava.train.checkpoints import Checkpoints
from kava.train.curriculum import Curriculum, schedule, unreachable_stage
from kava.train.loop import Loop
from kava.train.micro_batches import CURE, estimate_micro_batches, format_micro_batches, memory_of
from kava.train.optimizer import check_optimizer
from kava.train.prepare import (
    Prepared,
    bucketed,
    eviction_note,
    longest_entries,
    prepare_data,
    resolve_base,
    tokenizer_of,
)
from kava.train.progress import TRAIN_LOG, Report, cut_log
from kava.train.resume import load_weights, step_of
from kava.train.run_directory import (
    Done,
    begin,
    check_output_dir,
    create_run_record,
    find_resume_checkpoint,
    finished,
    lock_output_dir,
    refuse_other,
    refuse_other_settings,
)
from kava.train.sharding import run_on_all_ranks, shard
from kava.train.signals import StopOnSignal
from kava.train.state import State
from kava.train.tracking import Trackers, checked_trackers, naming_wandb_errors

# Returns name -> [height, width, 3] bytes, as `kava.explain.pictures.cache_pictures` does.
Pictures = Callable[[Reasoner, Config, Sequence[Example]], dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """Result of a run.

    Attributes:
        output_dir: directory of the run.
        exit_code: 0, or the code of the signal that stopped it.
        accuracy: best validation accuracy, a fraction.
        steps: optimizer steps taken.
    """

    output_dir: Path
    exit_code: int
    accuracy: float
    steps: int


def train(
    config: Config,
    output_dir: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    quick_test: bool = False,
    name: str | None = None,
    report_to: Sequence[str] = ("tensorboard",),
    quiet: bool = False,
    pictures: Pictures | None = None,
) -> Outcome:
    """Train one method with one seed; see `Outcome`.

    Args:
        config: run configuration.
        output_dir: directory of the run.
        resume: continue the run in `output_dir` from its newest checkpoint.
        overwrite: delete the run in `output_dir`.
        quick_test: this run may replace another quick test, and be replaced by one.
        name: name of the configuration in result files.
        report_to: trackers, see `kava.train.tracking`.
        quiet: print nothing to the terminal.
        pictures: draws pictures of the model at the end of each epoch, for the trackers.

    Raises:
        UserError: a problem that the user can fix, such as a missing model or data set, a full disk, or an output directory in use.
    """
    output_dir = Path(output_dir)
    trackers = checked_trackers(report_to)
    check_optimizer(config.training.optimizer)
    processes.drop_incomplete_launch()
    device = torch.device(choose_device(config.system.device, "system.device"))
    check_precision(str(device), config.system.mixed_precision)
    check_requirements(config, device)
    processes.join(device.type == "cpu", split=config.system.fsdp)
    with lock_output_dir(output_dir):
        check_output_dir(output_dir, resume=resume, overwrite=overwrite, quick_test=quick_test)
        newest = None
        if resume:
            if done := finished(output_dir, config):
                return Outcome(output_dir, 0, done.accuracy, done.steps)
            newest = find_resume_checkpoint(output_dir)
            refuse_other_settings(output_dir, config, newest)
        with report_out_of_memory("training", CURE):
            return _train(config, output_dir, newest, _How(device, resume, quick_test, name, trackers, quiet, pictures))


@dataclass(frozen=True)
class _How:
    """The arguments of `train` that are not part of the configuration, and the chosen device."""

    device: torch.device
    resume: bool
    quick_test: bool
    name: str | None
    trackers: list[str]
    quiet: bool
    pictures: Pictures | None


def _train(config: Config, output_dir: Path, newest: Path | None, how: _How) -> Outcome:
    if config.system.num_threads:
        torch.set_num_threads(config.system.num_threads)
    tokenizer = tokenizer_of(config)
    prepared = prepare_data(config, builder_of(tokenizer, config.dataset))
    if problem := unreachable_stage(config, *_size(prepared)):
        if newest is None and not how.quick_test:
            raise UserError(problem)
        if processes.is_main():
            print(f"kava: {problem}", file=sys.stderr, flush=True)
    base = resolve_base(config, how.quiet)
    set_seed(config.training.seed)
    metadata = {"name": how.name, "data": prepared.data, "provenance": collect() | {"model_commit": commit_of(base, config.model.revision)}}
    trained = Trained(build_model(base, tokenizer, config, how.device), tokenizer, config, base, metadata)
    trained.model.backbone.require(longest_entries(config, prepared.train))
    started = time.time()
    with StopOnSignal() as stop:
        if newest:
            _refuse_foreign(newest, trained)
        if config.system.fsdp:
            _split(trained, newest, how.device)
        title = f"{how.name or config.method} seed {config.training.seed}"
        report = Report(output_dir / TRAIN_LOG, title, how.quiet)
        run = create_run_record(output_dir, resume=how.resume, quick_test=how.quick_test)
        with (
            naming_wandb_errors(how.trackers),
            closing(report),
            closing(Trackers(how.trackers, output_dir, title, config, run.tracker_id)) as trackers,
        ):
            loop = _build_loop(trained, prepared, Checkpoints(output_dir, trained), how, report, trackers, stop)
            # The main process writes after all have read the directory, and the others continue after it has written.
            processes.wait()
            if processes.is_main():
                begin(output_dir, config, run, resume=how.resume)
                cut_log(output_dir / TRAIN_LOG, step_of(newest) if newest else 0)
                report.tell(start_line(config, how.device, loop.batches))
                if note := eviction_note(prepared.data, config.latent.num_tokens):
                    report.tell(note)
            processes.wait()
            state = loop.run(newest)
    outcome = Outcome(output_dir, stop.exit_code, state.best_metric or 0.0, state.global_step)
    if outcome.exit_code == 0 and processes.is_main():
        _finish(config, state, outcome, time.time() - started)
    return outcome


def start_line(config: Config, device: torch.device, batches: StepBatches) -> str:
    """One line with device, precision, examples per step and number of steps."""
    training, precision = config.training, config.system.mixed_precision
    counts = [training.batch_size, training.gradient_accumulation_steps, processes.world_size()]
    words = f"{math.prod(counts)} examples a step ({' x '.join(map(str, counts))}: batch, accumulation, processes)"
    mixed = "no mixed precision" if precision == "no" else precision
    return f"{describe_device(str(device))}; {mixed}; {words}; {batches.max_steps} steps"


def _refuse_foreign(newest: Path, trained: Trained) -> None:
    """Refuse a checkpoint of another run: the run's `config.yaml` may be missing, or the checkpoint may come from elsewhere."""
    recorded = read_kava_config(newest)
    fingerprint = str(recorded.get("base_fingerprint", ""))
    refuse_other(f"checkpoint {newest}", recorded_config(recorded["config"], str(newest)), trained.config, fingerprint)
    refuse_other_base(newest, fingerprint, trained.model.base_fingerprint, trained.base)
    # Each process has saved one file with the states of its random generators.
    begun, now = len(list(newest.glob("rng_state*.pth"))), processes.world_size()
    if begun not in (0, now):
        raise UserError(
            f"checkpoint {newest} was written by {begun} processes, and there are {now} now, which would train on different batches: "
            f"start {begun} (torchrun --nproc-per-node {begun}), or choose another --output_dir"
        )
    for done, key in (("trained on other rows", "fingerprint"), ("validated on other questions", "validation_fingerprint")):
        seen, found = ((about.get("data") or {}).get(key) for about in (recorded, trained.metadata))
        if seen and found and seen != found:
            raise UserError(f"checkpoint {newest} was {done} than there are now: give the same data, or choose another --output_dir")
    older = recorded_prompt_ids(newest, recorded, trained.tokenizer, trained.config)
    if older != trained.builder.prompt_ids:
        texts = [trained.tokenizer.decode(ids) for ids in (older, trained.builder.prompt_ids)]
        raise UserError(
            f"checkpoint {newest} was trained with the answer's fixed text {texts[0]!r}, which is {texts[1]!r} now: "
            "finish it with the version of this program that began it, or choose another --output_dir"
        )


def _split(trained: Trained, newest: Path | None, device: torch.device) -> None:
    """Shard the weights over the processes, after loading those of the checkpoint to resume from, if any."""
    if newest:
        with fitting(newest):
            load_weights(newest, trained)
    shard(trained.model, device)


def _build_loop(
    trained: Trained, prepared: Prepared, checkpoints: Checkpoints, how: _How, report: Report, trackers: Trackers, stop: StopOnSignal
) -> Loop:
    config, reasoner = trained.config, trained.reasoner()
    collator = build_collator(config, trained.builder)
    graphs = config.system.cuda_graphs and how.device.type == "cuda" and not config.system.fsdp
    sampler = None
    if config.training.sort_by_length:
        sampler = bucketed(config, prepared.train, collator, processes.world_size(), graphs=graphs)
    curriculum = Curriculum(collator, schedule(config, *_size(prepared)), config.training.uniform_prob, config.training.seed)

    def answer() -> Evaluation:
        with trained.model.backbone.with_graphs(graphs):
            return evaluate_accuracy(
                reasoner,
                prepared.validation,
                batch_size=config.evaluation.batch_size,
                max_new_tokens=config.evaluation.max_new_tokens,
                share=not config.system.fsdp,
            )

    def show(step: int) -> None:
        # Only the main process draws pictures, and a sharded model cannot run a pass on one process alone.
        if how.pictures and trackers.names and not config.system.fsdp:
            trackers.show(how.pictures(reasoner, config, prepared.validation[: config.evaluation.batch_size]), step)

    buckets = sampler.buckets if sampler else None
    micro = estimate_micro_batches(config, trained.model.backbone.causal_lm.config, buckets, memory_of(how.device))
    if buckets and processes.is_main() and micro.limit < inf:
        report.tell(format_micro_batches(micro, config, buckets))
    return Loop(
        trained.model,
        config,
        StepBatches(prepared.train, curriculum, config.training, how.device, sampler, micro),
        report,
        checkpoints=checkpoints,
        validate=partial(run_on_all_ranks, trained.model, answer) if config.system.fsdp else answer,
        trackers=trackers,
        stop=stop,
        on_epoch_end=show,
        resets_optimizer=curriculum.begins if config.training.reset_optimizer else None,
    )


def _size(prepared: Prepared) -> tuple[int, int, int]:
    """Number of rows, tokens of the longest trace and number of processes, which a curriculum's schedule depends on."""
    return len(prepared.train), int(prepared.train.lengths.trace.max()), processes.world_size()


def _finish(config: Config, state: State, outcome: Outcome, seconds: float) -> None:
    content = Done(
        config_fingerprint=config.fingerprint(),
        seed=config.training.seed,
        accuracy=outcome.accuracy,
        steps=outcome.steps,
        skipped_batches=state.skipped_batches,
        seconds=round(seconds, 1),
    )
    write_text(outcome.output_dir / TRAINING_DONE, json.dumps(content.model_dump(), indent=2) + "\n")
