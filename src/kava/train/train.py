"""One training run, from a configuration to `best_checkpoint`."""

import json
import math
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PrinterCallback, set_seed

from kava.checkpoint import Trained, fitting, read_kava_config, recorded_prompt_ids, refuse_other_base
from kava.config import Config, build_config, load_config
from kava.config.differences import differences
from kava.data.collate import Collator
from kava.data.sequences import SequenceBuilder, builder_of
from kava.errors import UserError
from kava.evaluate.accuracy import Evaluation, evaluate_accuracy
from kava.explain.explain import mean_similarity
from kava.generate import Reasoner
from kava.methods import METHODS
from kava.model.build import build_model, load_tokenizer
from kava.results import BEST_CHECKPOINT, TRAINING_DONE, Record, parse_record, read_mapping, write_text
from kava.runtime import processes
from kava.runtime.atomic import recover, tidy, verify
from kava.runtime.provenance import collect
from kava.train.arguments import runs_on_cpu, training_arguments
from kava.train.curriculum import Curriculum, hand_on
from kava.train.prepare import (
    Prepared,
    build_collator,
    eviction_note,
    last_stage,
    longest_entries,
    makes_base,
    open_data,
    prepare_data,
    resolve_base,
)
from kava.train.progress import TRAIN_LOG, Report, cut_log
from kava.train.resume import checkpoints, load_weights, step_of
from kava.train.sharding import shard
from kava.train.signals import StopOnSignal
from kava.train.tracking import CacheFigures, checked_trackers, naming_wandb_errors
from kava.train.trainer import KavaTrainer

# What a resumed run may have other than the one that was begun: it changes no step that both take.
MAY_CHANGE = ("training.max_bad_batches", "training.num_workers", "training.save_total_limit")


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        output_dir: where everything is.
        exit_code: 0, or the code of the signal that stopped it.
        accuracy: best validation accuracy, a fraction.
        steps: optimizer steps taken.
    """

    output_dir: Path
    exit_code: int
    accuracy: float
    steps: int


class Done(Record):
    """`training_done.json`: the run is over, and how it ended. `seconds` are those of the last process that worked on it."""

    config_fingerprint: str
    seed: int
    accuracy: float
    steps: int
    skipped_batches: int = 0
    seconds: float


def train(
    config: Config,
    output_dir: str | Path,
    *,
    resume: bool = False,
    name: str | None = None,
    report_to: Sequence[str] = ("tensorboard",),
    quiet: bool = False,
) -> Outcome:
    """Train one method with one seed; see `Outcome`. `name` is what result files call the configuration.

    Raises:
        UserError: whatever the user can mend: a model or data set that is missing, a full disk, an output directory in use.
    """
    output_dir = Path(output_dir)
    trackers = checked_trackers(report_to)
    processes.join(runs_on_cpu(config), split=config.system.fsdp)
    finished = _claim(output_dir, config, resume)
    if finished is not None:
        return finished
    if config.system.num_threads:
        torch.set_num_threads(config.system.num_threads)
    splits = open_data(config) if makes_base(config) else None  # a wrong name is found before minutes are spent on a base model
    base = resolve_base(config, quiet)
    tokenizer = load_tokenizer(base, config.model.trust_remote_code)
    builder = builder_of(tokenizer, config.dataset)
    prepared = prepare_data(config, builder, splits)
    set_seed(config.training.seed)
    metadata = {"name": name, "data": prepared.data, "provenance": collect()}
    trained = Trained(build_model(base, tokenizer, config), tokenizer, config, base, metadata)
    trained.model.backbone.require(longest_entries(config, prepared.train))
    started = time.time()
    with StopOnSignal() as stop:
        newest = _newest_good(output_dir) if resume else None
        if newest:
            _refuse_foreign(newest, trained)
        if config.system.fsdp:
            _split(trained, newest)
        if processes.is_main():
            cut_log(output_dir / TRAIN_LOG, step_of(newest) if newest else 0)
        report = Report(output_dir / TRAIN_LOG, f"{config.method} {output_dir.name}", quiet)
        if processes.is_main() and (note := eviction_note(prepared.data, config.latent.num_tokens)):
            report.tell(note)
        trainer = _build_trainer(trained, builder, prepared, output_dir, trackers)
        trainer.add_callback(report)
        trainer.add_callback(stop)
        try:
            with naming_wandb_errors(trackers):
                trainer.resume(newest)
        finally:
            report.close()
    outcome = Outcome(output_dir, stop.exit_code, trainer.state.best_metric or 0.0, trainer.state.global_step)
    if outcome.exit_code == 0:
        _finish(trainer, config, outcome, time.time() - started)
    return outcome


def _refuse_foreign(newest: Path, trained: Trained) -> None:
    """A checkpoint to go on from is this run's own: the run's own file may be gone, or the checkpoint may come from elsewhere."""
    recorded = read_kava_config(newest)
    _refuse_other(f"checkpoint {newest}", build_config(recorded["config"], str(newest)), trained.config)
    refuse_other_base(newest, str(recorded.get("base_fingerprint", "")), trained.model.base_fingerprint, trained.base)
    older = recorded_prompt_ids(newest, recorded, trained.tokenizer, trained.config)
    if older != trained.builder.prompt_ids:
        texts = [trained.tokenizer.decode(ids) for ids in (older, trained.builder.prompt_ids)]
        raise UserError(
            f"checkpoint {newest} was trained with the answer's fixed text {texts[0]!r}, which is {texts[1]!r} now: "
            "finish it with the version of this program that began it, or choose another --output_dir"
        )


def _split(trained: Trained, newest: Path | None) -> None:
    """Give each process its share of the weights, those of a checkpoint that is gone on from included."""
    if newest:
        with fitting(newest):
            load_weights(newest, trained)
    device = torch.device("cpu" if runs_on_cpu(trained.config) else f"cuda:{processes.local_rank()}")
    shard(trained.model, device)


def _build_trainer(trained: Trained, builder: SequenceBuilder, prepared: Prepared, output_dir: Path, trackers: list[str]) -> KavaTrainer:
    config = trained.config
    collator = build_collator(config, builder)
    curriculum = _curriculum(config, collator, prepared)
    reasoner = Reasoner(trained.model, builder, config.latent.num_tokens, config.latent.num_iterations)

    def validate() -> Evaluation:
        return evaluate_accuracy(
            reasoner,
            prepared.validation,
            batch_size=config.evaluation.batch_size,
            max_new_tokens=config.evaluation.max_new_tokens,
            share=not config.system.fsdp,
        )

    arguments = training_arguments(config, output_dir, trackers, f"{config.method} {output_dir.name}")
    trainer = KavaTrainer(
        trained,
        validate,
        curriculum,
        args=arguments,
        train_dataset=prepared.train,
        eval_dataset=prepared.validation,
        data_collator=collator if curriculum is None else hand_on,
    )
    trainer.remove_callback(PrinterCallback)
    # The figures are one process's work, which a split model has no passes for.
    if METHODS[config.method].thinks and METHODS[config.method].teacher and not config.system.fsdp:
        sample = prepared.validation[: config.evaluation.batch_size]
        trainer.add_callback(CacheFigures(lambda: trainer.callback_handler.callbacks, lambda: mean_similarity(reasoner, config, sample)))
    return trainer


def _curriculum(config: Config, collator: Collator, prepared: Prepared) -> Curriculum | None:
    if METHODS[config.method].curriculum == "none":
        return None
    per_step = config.training.batch_size * config.training.gradient_accumulation_steps * processes.world_size()
    per_epoch = math.ceil(len(prepared.train) / per_step)
    steps_per_stage = max(1, round(config.training.epochs_per_stage * per_epoch))
    return Curriculum(collator, steps_per_stage, last_stage(config, prepared.train))


def _claim(output_dir: Path, config: Config, resume: bool) -> Outcome | None:
    """Make the output directory ready; returns the outcome of a run that is already finished."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output directory {output_dir} cannot be made ({error.strerror}); choose another --output_dir") from None
    done = output_dir / TRAINING_DONE
    if resume and done.exists():
        cure = "remove it to go on from the newest checkpoint"
        content = parse_record(Done, read_mapping(done, "marker of a finished run", cure), str(done), cure)
        if content.config_fingerprint != config.fingerprint() or content.seed != config.training.seed:
            raise UserError(f"{output_dir} holds a finished run of another configuration; choose another --output_dir")
        return Outcome(output_dir, 0, content.accuracy, content.steps)
    if resume and checkpoints(output_dir):
        _same_configuration(output_dir, config)
    # All have looked before one writes, and it has written before any goes on.
    processes.wait()
    if processes.is_main():
        if resume:
            recover(output_dir / BEST_CHECKPOINT)
            tidy(output_dir)
        else:
            _clear(output_dir)
        write_text(output_dir / "config.yaml", _yaml(config))
    processes.wait()
    return None


def _same_configuration(output_dir: Path, config: Config) -> None:
    """Refuse to go on with a run that was begun under other settings."""
    begun = output_dir / "config.yaml"
    if begun.exists():
        _refuse_other(f"the unfinished run in {output_dir}", load_config(begun), config)


def _refuse_other(what: str, old: Config, config: Config) -> None:
    different = [
        f"{key} {values[0]!r}, not {values[1]!r}"
        for key, values in differences([old.to_dict(), config.to_dict()]).items()
        if key not in MAY_CHANGE
    ]
    if different:
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise UserError(f"{what} has {'; '.join(different[:3])}{more}: give the same settings again, or choose another --output_dir")


def _clear(output_dir: Path) -> None:
    """A run that does not resume starts clean, so that nothing of an older one is taken for its own."""
    for path in [*checkpoints(output_dir), *output_dir.glob("bad_batch-*"), output_dir / BEST_CHECKPOINT, output_dir / "logs"]:
        shutil.rmtree(path, ignore_errors=True)
    for name in (TRAINING_DONE, TRAIN_LOG):
        (output_dir / name).unlink(missing_ok=True)


def _newest_good(output_dir: Path) -> Path | None:
    """The newest checkpoint that is whole; damaged ones are named and passed over."""
    for candidate in checkpoints(output_dir):
        problem = verify(candidate)
        if problem is None:
            return candidate
        print(f"kava: checkpoint {candidate} is damaged ({problem}); trying an older one", file=sys.stderr, flush=True)
    if checkpoints(output_dir):
        print(f"kava: {output_dir} holds no checkpoint that is whole; starting from the beginning", file=sys.stderr, flush=True)
    return None


def _finish(trainer: KavaTrainer, config: Config, outcome: Outcome, seconds: float) -> None:
    if not trainer.args.should_save:
        return
    content = Done(
        config_fingerprint=config.fingerprint(),
        seed=config.training.seed,
        accuracy=outcome.accuracy,
        steps=outcome.steps,
        skipped_batches=trainer.skipped.count,
        seconds=round(seconds, 1),
    )
    write_text(outcome.output_dir / TRAINING_DONE, json.dumps(content.model_dump(), indent=2) + "\n")
    if "wandb" in trainer.args.report_to:
        import wandb

        wandb.finish()


def _yaml(config: Config) -> str:
    import yaml

    text: str = yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
    return text
