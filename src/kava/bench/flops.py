"""Model FLOP utilisation of a training step: what the formulas need, against the machine's own matrix-multiply rate.

Counted are the multiplications that the method cannot do without: every token of every pass once (the question shared, latents
that are final or lead nowhere not run), heads at labelled positions only, gradients of frozen weights left out. One multiply-add
is 2 FLOPs.
"""

import statistics
import time
from collections import Counter
from dataclasses import replace
from typing import Any

from kava.bench.workload import SHAPES, ModelShape, Workload, build_builder

TIMINGS = 3
Product = tuple[int, int, int]
"""Rows, inner and outer size of a matrix product."""


def passes(workload: Workload) -> list[tuple[int, int]]:
    """(new tokens, tokens they can attend to) of each pass over one example: question, teacher, latents, answer."""
    question, latents = workload.question, workload.latents
    thinking = question + 1 + latents
    count = min(workload.iterations, latents)
    # Each pass runs the latents that are not final and can still reach the last one.
    iterations = [(latents - count + 1, thinking - count + 1 + final) for final in range(count)]
    teacher = workload.cot + workload.answer
    return [
        (question, question), (teacher, question + teacher), (1 + latents - count, thinking - count),
        *iterations, (1 + workload.answer, thinking + 1 + workload.answer),
    ]  # fmt: skip


def products(workload: Workload, shape: ModelShape) -> Counter[Product]:
    """Every matrix product of a step with fixed weights, and how often it is computed (forward and backward)."""
    width = shape.hidden // shape.heads
    query, kv, rank = shape.heads * width, shape.kv_heads * width, workload.lora_r
    attention = [(shape.hidden, query), (shape.hidden, kv), (shape.hidden, kv), (query, shape.hidden)]
    mlp = [(shape.hidden, shape.intermediate)] * 2 + [(shape.intermediate, shape.hidden)]
    # Forward, gradient of the input, and of the weights where they are trained.
    base = 2 if rank else 3
    counted: Counter[Product] = Counter()
    for tokens, _ in passes(workload):
        rows = workload.batch * tokens
        for inner, outer in attention + mlp:
            counted[rows, inner, outer] += base * shape.layers
        for inner, outer in attention if rank else []:
            counted[rows, inner, rank] += 3 * shape.layers
            counted[rows, rank, outer] += 3 * shape.layers
    count = min(workload.iterations, workload.latents)
    counted[workload.batch * (workload.latents - count + 1), shape.hidden, shape.hidden] += 2 * 3 * count
    labelled = workload.batch * (workload.cot + 2 * workload.answer)
    counted[labelled, shape.hidden, shape.vocabulary] += base
    return counted


def attention_flops(workload: Workload, shape: ModelShape) -> int:
    """Scores and weighted values, forward and twice that backward; a causal mask halves nothing here."""
    pairs = sum(tokens * visible for tokens, visible in passes(workload))
    return 3 * 2 * 2 * workload.batch * shape.layers * shape.hidden * pairs


def shape_of(workload: Workload) -> ModelShape:
    """The model's sizes with its real vocabulary and number of layers."""
    shape = SHAPES[workload.shape]
    if not shape.vocabulary:
        shape = replace(shape, vocabulary=len(build_builder().tokenizer))
    return replace(shape, layers=workload.layers or shape.layers)


def needed_flops(workload: Workload) -> int:
    """FLOPs of a step: all matrix products with fixed weights, and attention."""
    shape = shape_of(workload)
    linear = sum(2 * rows * inner * outer * count for (rows, inner, outer), count in products(workload, shape).items())
    return linear + attention_flops(workload, shape)


def utilisation(workload: Workload, seconds: float) -> dict[str, Any]:
    """FLOPs of a step, the rate at which this machine multiplies matrices of those shapes, and the share of it that was reached."""
    import torch

    shape = shape_of(workload)
    counted = products(workload, shape)
    flops = {product: 2 * product[0] * product[1] * product[2] * count for product, count in counted.items()}
    dtype = getattr(torch, workload.dtype)
    needed_seconds = sum(count * _product_seconds(product, dtype, workload.device) for product, count in counted.items())
    rate = sum(flops.values()) / needed_seconds
    total = needed_flops(workload)
    return {"flops": total, "matmul_flops_per_second": rate, "share": total / rate / seconds}


def _product_seconds(product: Product, dtype: Any, device: str) -> float:
    import torch

    rows, inner, outer = product
    left, right = torch.randn(rows, inner, dtype=dtype, device=device), torch.randn(outer, inner, dtype=dtype, device=device)
    seconds = []
    for _ in range(TIMINGS + 1):
        started = time.perf_counter()
        torch.nn.functional.linear(left, right)
        if device != "cpu":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])
