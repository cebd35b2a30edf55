"""Evaluate one checkpoint on one or more data sets and write the result files."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kava.checkpoint import KAVA_CONFIG, Trained, checkpoint_directory, open_checkpoint, read_kava_config, results_directory
from kava.checkpoint.publish import refresh_card
from kava.config import Config, build_config
from kava.config.overrides import dotted
from kava.data.sources.stream import Loaded
from kava.errors import UserError, at_least
from kava.evaluate.accuracy import Evaluation, evaluate_accuracy
from kava.evaluate.questions import load_questions
from kava.results import (
    BEST_CHECKPOINT,
    CheckpointInfo,
    DataInfo,
    Metrics,
    Result,
    Row,
    RunInfo,
    check_result_path,
    dataset_label,
    read_result,
    result_path,
    rows_path,
    verified_results,
    write_result,
    write_rows,
)
from kava.results.statistics import wilson_interval
from kava.runtime import processes
from kava.runtime.device import choose_device
from kava.runtime.provenance import collect

QUICK_TEST_QUESTIONS = 20


@dataclass(frozen=True)
class Request:
    """What to evaluate and how; None keeps the checkpoint's own configuration.

    Attributes:
        checkpoint: a checkpoint, or the directory of a run that has a best one.
        dataset: a name in `evaluation.datasets`, a file, a directory or a hub name.
        data_dir: a directory that holds the benchmark, in place of the configured source.
        max_samples: evaluate only the first `max_samples` questions.
        quick_test: evaluate at most twenty questions.
        use_latent: False makes a latent method write its CoT.
        overrides: dotted configuration keys to change.
        device: where the model runs; default: as `system.device` says.
    """

    checkpoint: str
    dataset: str
    data_dir: str | None = None
    max_samples: int | None = None
    quick_test: bool = False
    batch_size: int | None = None
    max_new_tokens: int | None = None
    use_latent: bool = True
    overrides: dict[str, Any] | None = None
    device: str | None = None


def evaluate(request: Request, output: str | Path | None = None, opened: Trained | None = None) -> Result:
    """Evaluate a checkpoint; with `output`, write the result there and the per-question rows next to it.

    `opened` is a loaded model to use in place of the request's checkpoint. In a distributed run (torchrun, accelerate launch) the
    processes share the questions, and the main process writes the files.
    """
    if opened and request.overrides:
        raise UserError("overrides belong to a checkpoint that is loaded here: give its path, or load the model with them")
    if opened is None:
        return next(evaluate_all([(request, output)]))
    _check(request, output)
    return _evaluate(request, output, *_asked(request, opened), source=None)


def evaluate_all(requests: Sequence[tuple[Request, str | Path | None]]) -> Iterator[Result]:
    """Evaluate one checkpoint, which is loaded once, on several data sets; each result is written to the path beside its request."""
    for request, output in requests:
        _check(request, output)
    opened, source = _open(requests[0][0])
    # All of them, so that a set which cannot be read is named before hours of answering and not after them.
    asked = [_asked(request, opened) for request, _ in requests]
    for (request, output), (trained, questions) in zip(requests, asked, strict=True):
        yield _evaluate(request, output, trained, questions, source)


@dataclass(frozen=True)
class _Source:
    """The checkpoint that a model was loaded from, as it was then."""

    directory: Path
    info: CheckpointInfo


def _check(request: Request, output: str | Path | None) -> None:
    at_least(1, batch_size=request.batch_size, max_samples=request.max_samples, max_new_tokens=request.max_new_tokens)
    if output is not None:
        check_result_path(output)
    _refuse_training_settings(dotted(request.overrides or {}))


def _open(request: Request) -> tuple[Trained, _Source]:
    overrides = dotted(request.overrides or {})
    device = choose_device(request.device or overrides.get("system.device"), "device" if request.device else "system.device")
    processes.join(on_cpu=device == "cpu")
    directory = checkpoint_directory(request.checkpoint)
    trained = open_checkpoint(request.checkpoint, overrides, device)
    info = CheckpointInfo(path=Path(request.checkpoint).as_posix(), manifest=trained.manifest)
    return trained, _Source(directory, info)


def _asked(request: Request, trained: Trained) -> tuple[Trained, Loaded]:
    """The model with the configuration of the request, and the questions."""
    # Part of the configuration, so that a result on twenty questions is never mistaken for one on all of them.
    trained = replace(trained, config=as_evaluated(trained.config, request))
    questions = load_questions(trained.config, request.dataset, request.data_dir)
    if not questions.examples:
        raise UserError(f"data set '{request.dataset}' ({questions.source}) holds no question")
    return trained, questions


def _evaluate(request: Request, output: str | Path | None, trained: Trained, questions: Loaded, source: _Source | None) -> Result:
    """`source` is None for a model that may have changed since it was loaded."""
    started, config = time.perf_counter(), trained.config
    # Beside the configuration, whose fingerprint stays that of the run: a batch is answered as each of its questions is.
    batch_size = request.batch_size or config.evaluation.batch_size
    evaluation = evaluate_accuracy(
        trained.reasoner(),
        questions.examples,
        batch_size=batch_size,
        max_new_tokens=config.evaluation.max_new_tokens,
        temperature=config.evaluation.temperature,
        seed=config.training.seed,
        use_latent=config.evaluation.use_latent,
    )
    result = Result(
        dataset=dataset_label(request.dataset, config.evaluation.datasets),
        metrics=metrics_of(evaluation, config.evaluation.tolerance),
        run=run_info(trained),
        data=DataInfo(
            source=questions.source,
            split=questions.note or "test",
            fingerprint=questions.fingerprint,
            rows=len(questions.examples),
            bad_rows=questions.bad_rows,
            asked=request.dataset,
        ),
        checkpoint=source.info if source else None,
        provenance=collect(wall_seconds=time.perf_counter() - started) | {"batch_size": batch_size, "training": trained.metadata},
    )
    if output is not None and processes.is_main():
        answers = write_rows(rows_path(output), [Row(**item.row()) for item in evaluation.answered])
        result = result.model_copy(update={"answers": answers})
        write_result(output, result)
        if source and (source.directory / KAVA_CONFIG).exists() and Path(output).parent.resolve() == source.directory.parent.resolve():
            refresh_card(source.directory)
    return result


def default_output(checkpoint: str, dataset: str, changed: Sequence[str] = ()) -> Path:
    """Return `results_<dataset>.yaml` in the directory of the run; `changed` are the options that differ from a default evaluation.

    Raises:
        UserError: there is no such checkpoint; or the file holds a result on another data set of the same name, or the full default
            result of the best checkpoint, and this evaluation is a different one.
    """
    directory = checkpoint_directory(checkpoint)
    evaluation = read_kava_config(directory)["config"].get("evaluation")
    configured = evaluation.get("datasets") if isinstance(evaluation, dict) else None
    path = result_path(results_directory(checkpoint), dataset_label(dataset, configured if isinstance(configured, dict) else {}))
    try:
        asked = read_result(path).data.asked
    except UserError:
        return path  # there is none yet, or one that is broken and may be replaced
    if asked is not None and Path(asked).absolute() != Path(dataset).absolute():
        raise UserError(f"{path} holds the result on '{asked}'; name another file with --output, or remove that one")
    best = path.parent / BEST_CHECKPOINT
    if best.is_dir() and directory.name != BEST_CHECKPOINT:
        changed = [directory.name, *changed]
    if changed and verified_results([path])[0]:
        raise UserError(f"{path} holds the result on the whole of '{dataset}'; with {', '.join(changed)} name another file with --output")
    return path


def _refuse_training_settings(overrides: dict[str, object]) -> None:
    """Refuse overrides of training settings: the result would record a seed or learning rate that the weights were not trained with."""
    for key in overrides:
        if key.startswith("training."):
            raise UserError(f"--{key} is a training setting and cannot change at evaluation: leave it out, or train with it")


def as_evaluated(config: Config, request: Request) -> Config:
    """Return the checkpoint's configuration with the changes of the request."""
    evaluation = config.evaluation
    limit = request.max_samples or evaluation.max_samples
    if request.quick_test and request.max_samples is None:
        limit = min(limit or QUICK_TEST_QUESTIONS, QUICK_TEST_QUESTIONS)
    changes = {
        "evaluation.max_samples": limit,
        "evaluation.max_new_tokens": request.max_new_tokens or evaluation.max_new_tokens,
        "evaluation.use_latent": evaluation.use_latent and request.use_latent,
    }
    return build_config(config.to_dict(), "the evaluation", changes)


def metrics_of(evaluation: Evaluation, tolerance: float) -> Metrics:
    """Return the metrics of a result file; `tolerance` is for `correct_close`, which is reported in addition to exact accuracy."""
    total = len(evaluation.answered)
    low, high = wilson_interval(evaluation.correct, total)
    return Metrics(
        accuracy=evaluation.accuracy,
        accuracy_ci95=[low, high],
        correct=evaluation.correct,
        total=total,
        forward_passes=evaluation.mean("forward_passes"),
        generated_tokens=evaluation.mean("generated_tokens"),
        seconds_per_question=evaluation.seconds_per_question,
        cache_bytes_per_question=evaluation.mean("cache_bytes"),
        correct_close=evaluation.correct_close(tolerance),
        cut_off=evaluation.cut_off,
        without_number=evaluation.without_number,
    )


def run_info(trained: Trained) -> RunInfo:
    """Return which run a checkpoint came from."""
    return RunInfo(
        name=trained.metadata.get("name"),
        method=trained.config.method,
        seed=trained.config.training.seed,
        config=trained.config.to_dict(),
        config_fingerprint=trained.config.fingerprint(),
        model=trained.config.model.name,
    )


def print_result(result: Result) -> None:
    """Print a small table of one result."""
    metrics = result.metrics
    low, high = metrics.accuracy_ci95
    table = Table(title=f"{result.run.method} on {result.dataset} ({metrics.total} questions)", show_header=False)
    rows = [
        ("accuracy", f"{100 * metrics.accuracy:.1f} %   (95 % interval {100 * low:.1f} to {100 * high:.1f})"),
        ("forward passes / question", f"{metrics.forward_passes:.1f}"),
        ("generated tokens / question", f"{metrics.generated_tokens:.1f}"),
        ("seconds / question", f"{metrics.seconds_per_question:.4f}"),
        ("cut off; without a number", f"{metrics.cut_off}; {metrics.without_number} of {metrics.total} answers"),
    ]
    if metrics.correct_close is not None and metrics.correct_close != metrics.correct:
        within = f"{100 * metrics.correct_close / metrics.total:.1f} %"
        rows.insert(1, (f"accuracy within {result.run.config['evaluation'].get('tolerance', 0.001):g}", within))
    for name, value in rows:
        table.add_row(name, value)
    Console(file=sys.stdout).print(table)
