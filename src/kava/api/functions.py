"""Functions of the public API: load, compress, train and evaluate, one call each."""

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from kava import eviction
from kava.api.model import Model
from kava.checkpoint import Trained
from kava.config import Config, build_config, config_path, load_config
from kava.errors import UserError, at_least, nearest, only_options
from kava.evaluate.evaluate import Request
from kava.evaluate.evaluate import evaluate as evaluate_checkpoint
from kava.eviction import SCORERS, Compressed, Trace
from kava.results import Result
from kava.train.train import Outcome
from kava.train.train import train as train_run


def load(name: str | Path, *, device: str | None = None, revision: str | None = None, overrides: dict[str, Any] | None = None) -> Model:
    """Load a trained model with its tokenizer and configuration.

    Args:
        name: a checkpoint's directory, the directory of a run, or a hub name.
        device: "cpu", "cuda" or "cuda:N"; default: a GPU if there is one.
        revision: branch, tag or commit on the hub.
        overrides: dotted configuration keys to change, such as `{"latent.num_iterations": 6}`.

    Raises:
        UserError: there is no such checkpoint or device, the checkpoint is damaged, or its base model is missing.
    """
    return Model.from_pretrained(name, device=device, revision=revision, overrides=overrides)


def compress(trace: Trace, scorer: str = "rkv", slots: int = 24, *, lam: float = 0.1, seed: int = 0) -> Compressed:
    """Keep the `slots` entries of a trace that score highest, per layer and KV head, in time order.

    Args:
        trace: a cached chain of thought, such as `Trace.from_cache(cache, attentions)`.
        scorer: a name in `SCORERS`; `rkv_original` expects the importance from the trace's last 8 tokens, and always keeps these.
        slots: M, entries to keep.
        lam: weight of importance against redundancy, 0 to 1 (`rkv` only).
        seed: seed of the scorer `random`.

    Raises:
        UserError: there is no such scorer, or a value is out of range.
    """
    if scorer not in SCORERS:
        raise UserError(f"there is no scorer '{scorer}'{nearest(scorer, SCORERS)}")
    at_least(0, slots=slots)
    if not 0 <= lam <= 1:
        raise UserError(f"lam is {lam}; it must be 0 to 1")
    return eviction.compress(trace, scorer, slots, lam, seed)


def train(
    config: Config | Mapping[str, Any] | str | Path, output_dir: str | Path, *, overrides: dict[str, Any] | None = None, **options: Any
) -> Outcome:
    """Train one method with one seed.

    Args:
        config: a configuration, its sections as a mapping, a file, or a name in `configs/`.
        output_dir: the run's own directory; the model is its `best_checkpoint`.
        overrides: dotted configuration keys to change, such as `{"training.max_steps": 100}`.
        options: options of `kava.train.train.train`: resume, overwrite, report_to, quiet, name.

    Raises:
        UserError: anything that the user can fix: a wrong setting or option, a missing model or data set, an output directory in use.
    """
    only_options("train", options, (name for name, option in signature(train_run).parameters.items() if option.kind is option.KEYWORD_ONLY))
    if isinstance(config, str | Path):
        path = config_path(str(config))
        built, name = load_config(path, overrides), path.stem
    else:
        sections = _named(config) if isinstance(config, Config) else dict(config)
        built, name = build_config(sections, "the configuration", overrides), "run"
    return train_run(built, output_dir, **{"name": name, **options})


def _named(config: Config) -> dict[str, Any]:
    """Return the sections of a configuration without training settings that equal its method's defaults.

    An override may choose another method, whose own defaults then apply.
    """
    sections, own = config.to_dict(), Config(method=config.method).to_dict()["training"]
    return {**sections, "training": {key: value for key, value in sections["training"].items() if value != own[key]}}


def evaluate(
    model: Model | Trained | str | Path, dataset: str, *, output: str | Path | None = None, device: str | None = None, **limits: Any
) -> Result:
    """Measure accuracy, forward passes, tokens and seconds per question of a model on a data set.

    Args:
        model: a model that `load` returned, or a name that `load` accepts.
        dataset: a name in `evaluation.datasets` (gsm8k, gsm8k-hard, svamp), a file, a directory or a hub name.
        output: result file to write, with the answered questions next to it as JSON lines.
        device: device of a model that is loaded here.
        limits: max_samples, batch_size, max_new_tokens, use_latent, data_dir, quick_test.

    Raises:
        UserError: there is no such model or data set, or a value is out of range.
    """
    only_options("evaluate", limits, set(Request.__dataclass_fields__) - {"checkpoint", "dataset", "device"})
    if isinstance(model, str | Path):
        return evaluate_checkpoint(Request(str(model), dataset, device=device, **limits), output)
    return evaluate_checkpoint(Request("", dataset, **limits), output, model.trained if isinstance(model, Model) else model)
