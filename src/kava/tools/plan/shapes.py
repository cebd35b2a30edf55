"""Inputs of a plan: the shape of the base model and the number and lengths of the training rows, without loading weights.

For the base models of the shipped configurations, the published `config.json` is in `data/known.yaml`, so no network is needed;
transformers reads any other from its directory or the hub.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from kava.config import Config
from kava.config.strict_yaml import load_yaml
from kava.data.sequences import builder_of
from kava.data.sources.resolve import local_path
from kava.errors import UserError, reason_of
from kava.model.smollm2 import SMOLLM2_DIRECTORY, SMOLLM2_NAME
from kava.model.tokenizer import load_tokenizer
from kava.runtime.cache_directory import cache_dir
from kava.tools.bench.flops import step_flops, writes_trace
from kava.tools.bench.workload import ModelShape, Workload
from kava.train.footprint import of_depth
from kava.train.prepare import MINI_NAME, prepare_data, tokenizer_of
from kava.train.pretrain import mini_shape
from kava.train.step_trace import Lengths


@dataclass(frozen=True)
class DataShape:
    """The size of a training set.

    Attributes:
        rows: number of rows.
        mean: mean lengths of a row, which determine the hours.
        longest: lengths to which the batch of the longest rows is padded, which determine the memory.
        source: where the numbers come from.
    """

    rows: int
    mean: Lengths
    longest: Lengths
    source: str


@lru_cache(maxsize=1)
def known() -> dict[str, Any]:
    """Return the content of `data/known.yaml`."""
    text = resources.files(__package__).joinpath("data/known.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = load_yaml(text)
    return content


def model_shape(config: Config) -> tuple[Any, str]:
    """Return the transformers configuration of the base model and where it was found. No weights are read.

    Raises:
        UserError: the configuration is not in `data/known.yaml` and cannot be read.
    """
    from transformers import AutoConfig

    base = config.model.name
    found = known()["models"].get(base)
    if found is not None:
        return AutoConfig.for_model(**found["config"]), found["source"]
    if base == MINI_NAME:
        return mini_shape(config.model.mini, _tokenizer_here(config)), "model.mini"
    try:
        return AutoConfig.from_pretrained(base, trust_remote_code=config.model.trust_remote_code), f"config.json of {base}"
    except (OSError, ValueError, KeyError) as error:
        reason = reason_of(error)
        raise UserError(
            f"the shape of model '{base}' cannot be read ({reason}); set model.name to a local directory or to one of "
            f"{', '.join(known()['models'])}"
        ) from None


def sizes_of(shape: Any) -> ModelShape:
    """Return the sizes that the FLOP formulas need, from a transformers configuration and the weight matrices of one layer."""
    text = shape.get_text_config()
    hidden, heads = int(text.hidden_size), int(text.num_attention_heads)
    inner = int(getattr(text, "intermediate_size", None) or getattr(text, "ffn_dim", None) or getattr(text, "n_inner", None) or 4 * hidden)
    return ModelShape(
        hidden, inner, int(text.num_hidden_layers), heads, int(getattr(text, "num_key_value_heads", None) or heads), int(text.vocab_size),
        head=int(getattr(text, "head_dim", None) or 0), mlp_matrices=_mlp_matrices(shape, hidden, inner),
    )  # fmt: skip


def _mlp_matrices(shape: Any, hidden: int, inner: int) -> int:
    """Count the hidden x inner matrices of a layer: a gated MLP has three (some models fuse two of them), a plain one two."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        layers = AutoModelForCausalLM.from_config(of_depth(shape, 1)).base_model.named_parameters()
    found = [weight for name, weight in layers if weight.dim() == 2 and inner in (weight.shape[0], weight.shape[1], weight.shape[0] // 2)]
    return max(2, round(sum(weight.numel() for weight in found if hidden in weight.shape) / (hidden * inner)))


def example_flops(shape: Any, config: Config, data: DataShape) -> int:
    """Return the FLOPs of one row of mean length, forward and backward; for a curriculum, those of its longest stage."""
    whole = writes_trace(config.method) or not config.dataset.drop_last_step
    workload = Workload(
        batch=1,
        question=data.mean.question,
        cot=data.mean.cot if whole else data.mean.cot - data.mean.last_step,
        answer=data.mean.answer,
        latents=config.latent.num_tokens,
        iterations=config.latent.num_iterations,
        lora_r=config.lora.r if config.lora.enabled else 0,
        method=config.method,
    )
    return step_flops(workload, sizes_of(shape), recompute=config.training.gradient_checkpointing)


def data_shape(
    config: Config, rows: int | None = None, mean: tuple[int, int, int] | None = None, longest: tuple[int, int, int] | None = None
) -> DataShape:
    """Return rows and lengths of the configured data set: as given, from `data/known.yaml`, or counted.

    Counting needs the data set and the tokenizer on this machine. `mean` and `longest` are tokens of question, trace and answer, for the
    mean row and for the batch with the longest rows.

    Raises:
        UserError: the lengths are neither given nor known and cannot be counted.
    """
    # The last step is assumed to be a quarter of the trace.
    given_mean, given_longest = (given and Lengths(given[0], given[1], given[1] // 4, given[2]) for given in (mean, longest))
    if rows and given_mean and given_longest:
        return DataShape(rows, given_mean, given_longest, "as given")
    found = _known(config) or _counted(config)
    return DataShape(rows or found.rows, given_mean or found.mean, given_longest or found.longest, found.source)


def _known(config: Config) -> DataShape | None:
    found = known()["datasets"].get(config.dataset.name)
    if found is None:
        return None
    limit, rows = config.dataset.max_length, min(found["rows"], config.dataset.max_train_samples or found["rows"])
    longest = Lengths(**found["longest"]).scaled(min(1.0, limit / found["row"]))
    return DataShape(rows, Lengths(**found["mean"]), longest, found["source"])


def _counted(config: Config) -> DataShape:
    tokenizer = _tokenizer_here(config)
    if not (local_path(config.dataset.name).exists() or config.dataset.name == MINI_NAME) or tokenizer is None:
        raise UserError(
            f"how long the rows of '{config.dataset.name}' are is not known here: download the data and the tokenizer, or give "
            "--rows N --mean_lengths Q C A --longest_lengths Q C A (tokens of question, trace and answer)"
        )
    rows = prepare_data(config, builder_of(tokenizer, config.dataset)).train
    question, trace, answer = rows.lengths
    parts = np.stack([question, trace, trace - rows.teacher_traces(drop_last_step=True), answer])
    most = np.argsort(-rows.lengths.total, kind="stable")[: config.training.batch_size]
    mean, longest = (Lengths(*column.tolist()) for column in (-(-parts.sum(axis=1) // len(rows)), parts[:, most].max(axis=1)))
    return DataShape(len(rows), mean, longest, f"counted in {config.dataset.name} with the tokenizer of {config.model.name}")


def _tokenizer_here(config: Config) -> Any:
    """Return the tokenizer of the base model if it is on this machine, else None."""
    name = config.model.name
    if name == MINI_NAME:
        return tokenizer_of(config)
    directory = cache_dir() / SMOLLM2_DIRECTORY if name == SMOLLM2_NAME else Path(name)
    return load_tokenizer(str(directory)) if directory.is_dir() else None
