"""Render model cards from a run's configuration, metadata and results. No file is written; the base model's card is read.

render_card(config, base="meta-llama/Llama-3.2-1B-Instruct", metadata=metadata, results=results)
"""

from collections.abc import Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

from kava.config import Config
from kava.config.differences import flatten
from kava.data.mini.problems import EXAMPLE
from kava.methods import METHODS
from kava.results import Result
from kava.runtime.hub import in_cache, is_local

_SHOWN = (
    "method", "latent.num_tokens", "latent.num_iterations", "dataset.name", "loss.alpha1_codi", "loss.alpha2_kv",
    "loss.alpha_step", "loss.kv_loss_type", "loss.layerwise_std", "rkv.eviction", "rkv.lambda", "lora.r", "lora.alpha",
    "training.learning_rate", "training.batch_size", "training.gradient_accumulation_steps", "training.epochs", "training.max_steps",
    "training.weight_decay", "training.seed",
)  # fmt: skip
_SPLITS = ("train", "validation", "test")


def render_card(config: Config, base: str, metadata: dict[str, Any], results: Sequence[Result] = (), name: str | None = None) -> str:
    """Return the text of a README.md that starts with the hub's metadata.

    Args:
        config: configuration of the run.
        base: hub name or directory of the base model.
        metadata: metadata of the checkpoint: name, step, data and validation, as far as known.
        results: evaluations of this checkpoint.
        name: path or hub name of this model; default: a placeholder.
    """
    import jinja2

    template = resources.files(__package__).joinpath("card.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, autoescape=False)
    content = config.to_dict()
    flat = flatten(content)
    method = METHODS[config.method]
    unused = (() if config.lora.enabled else ("lora.",)) + (() if method.step_decoder else ("loss.alpha_step",))
    provenance = metadata.get("provenance") or {}
    return environment.from_string(template).render(
        header=_header(config, base, metadata, results, name).strip(),
        title=f"{config.method} on {_short(base)}",
        config=content,
        base=_short(base),
        loads_from=base,
        lora=config.lora.enabled,
        latents=config.latent.num_tokens if method.uses_latents else 0,
        step=metadata.get("step"),
        data=metadata.get("data"),
        command=provenance.get("command_line"),
        commit=provenance.get("commit"),
        # The built-in data is the only one with a known example question.
        question=EXAMPLE if config.dataset.name == "builtin:mini" else "YOUR QUESTION",
        name=name or "PATH_OR_HUB_NAME",
        results=[*_validation(metadata), *map(_row, results)],
        settings={key: flat[key] for key in _SHOWN if not key.startswith(unused)},
    )


def _header(config: Config, base: str, metadata: dict[str, Any], results: Sequence[Result], name: str | None) -> str:
    """Return the hub's metadata as YAML: each tag once, and nothing that is valid on this machine only."""
    from huggingface_hub import EvalResult, ModelCardData

    evaluations = [
        EvalResult(
            task_type="text-generation",
            dataset_type=result.dataset,
            dataset_name=result.dataset,
            dataset_split=split if (split := result.data.split.partition(" ")[0]) in _SPLITS else "test",
            metric_type="accuracy",
            metric_value=round(100 * result.metrics.accuracy, 2),
        )
        for result in results
    ]
    trained_on, read_from = config.dataset.name, (metadata.get("data") or {}).get("source", "")
    on_hub = "/" in trained_on and not is_local(trained_on) and not Path(read_from).is_absolute()
    fields: dict[str, Any] = {
        "library_name": "peft" if config.lora.enabled else "transformers",
        "pipeline_tag": "text-generation",
        "base_model": None if is_local(base) else base,
        "tags": list(dict.fromkeys(["kava", "latent-reasoning", config.method])),
        "datasets": [trained_on] if on_hub else None,
        "model_name": (name or f"{config.method}-{_short(base)}") if results else None,
        "eval_results": evaluations or None,
    }
    return ModelCardData(**fields, **_licence(base)).to_yaml()


def _licence(base: str) -> dict[str, Any]:
    """Return the base model's licence, which derived weights inherit, from its model card if that is available locally."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    if base.startswith("builtin:"):
        return {"license": "apache-2.0"}
    found = Path(base, "README.md") if is_local(base) else in_cache(base, "README.md")
    if found and found.is_file():
        stated: dict[str, Any] = {}
        # The base model's card may be broken, which must not prevent saving a checkpoint.
        with suppress(OSError, ValueError, YAMLError):
            stated = metadata_load(found) or {}
        known = {key: str(stated[key]) for key in ("license", "license_name", "license_link") if stated.get(key)}
        if "license" in known:
            return known
    where = {} if is_local(base) else {"license_link": f"https://huggingface.co/{base}"}
    return {"license": "other", "license_name": "that-of-the-base-model", **where}


def _row(result: Result) -> dict[str, Any]:
    metrics = result.metrics
    low, high = metrics.accuracy_ci95
    return {
        "dataset": result.dataset,
        "accuracy": metrics.accuracy,
        "interval": f"{100 * low:.1f} to {100 * high:.1f}",
        "total": metrics.total,
        "passes": f"{metrics.forward_passes:.1f}",
    }


def _validation(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    validation = metadata.get("validation") or {}
    accuracy = validation.get("eval_accuracy", validation.get("accuracy"))
    if accuracy is None:
        return []
    passes = validation.get("eval_forward_passes")
    shown = "" if passes is None else f"{passes:.1f}"
    return [{"dataset": "validation, which chose this checkpoint", "accuracy": accuracy, "interval": "", "total": "", "passes": shown}]


def _short(base: str) -> str:
    return Path(base).name if is_local(base) else base
