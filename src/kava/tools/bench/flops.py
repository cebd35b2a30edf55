"""Model FLOP utilisation of a training step, relative to the measured matrix multiplication rate of the machine.

Counts only the FLOPs that the method requires: every token of every pass once (the question is shared; latents that are final or
cannot affect the last one are not run), the LM head at labelled positions only, and no gradients of frozen weights. One multiply-add
is 2 FLOPs.
"""

import statistics
from collections import Counter
from dataclasses import replace
from typing import Any

import torch

from kava.methods import METHODS
from kava.tools.bench.timing import alternate
from kava.tools.bench.workload import SHAPES, ModelShape, Workload, build_tokenizer

TIMINGS = 3
Product = tuple[int, int, int]
"""Rows, inner and outer size of a matrix multiplication."""


def passes(workload: Workload) -> list[tuple[int, int]]:
    """Return (new tokens, tokens they can attend to) for each pass over one example; on a GPU the teacher's is part of the first."""
    method = METHODS[workload.method]
    question, latents = workload.question, workload.latents
    student = int(method.uses_latents) + workload.cot * writes_trace(workload.method) + workload.answer
    if not method.uses_latents:
        return [(question + student, question + student)]
    prefix = question + 1 + latents
    count = _iterations(workload)
    # Each pass runs the latents that are not final and still affect the last one; the first includes the question, the last the answer.
    found = [(prefix - count, prefix - count)]
    found += [(latents - count + 1, prefix - count + 1 + final) for final in range(count - 1)]
    found.append(((latents - count + 1 if count else 0) + student, prefix + student))
    if method.teacher:
        teacher = workload.cot + workload.answer
        found.append((teacher, question + teacher))
    if method.step_decoder:
        found.append((latents + workload.cot, latents + workload.cot))
    return found


def products(workload: Workload, shape: ModelShape, *, recompute: bool = False) -> Counter[Product]:
    """Return every matrix multiplication by a weight matrix in a step, and how often it is computed (forward and backward).

    With `recompute`, layers run forward a second time in the backward pass (`training.gradient_checkpointing`).
    """
    width = shape.head_size
    query, kv, rank = shape.heads * width, shape.kv_heads * width, workload.lora_r
    attention = [(shape.hidden, query), (shape.hidden, kv), (shape.hidden, kv), (query, shape.hidden)]
    mlp = [(shape.hidden, shape.intermediate)] * (shape.mlp_matrices - 1) + [(shape.intermediate, shape.hidden)]
    # Forward, gradient of the input, and gradient of the weights if they are trained.
    base, again = 2 if rank else 3, int(recompute)
    counted: Counter[Product] = Counter()
    for tokens, _ in passes(workload):
        rows = workload.batch * tokens
        for inner, outer in attention + mlp:
            counted[rows, inner, outer] += (base + again) * shape.layers
        for inner, outer in attention if rank else []:
            counted[rows, inner, rank] += (3 + again) * shape.layers
            counted[rows, rank, outer] += (3 + again) * shape.layers
    method = METHODS[workload.method]
    if method.uses_projection:
        count = _iterations(workload)
        counted[workload.batch * (workload.latents - count + 1), shape.hidden, shape.hidden] += 2 * 3 * count
    traces = method.teacher + method.step_decoder + writes_trace(workload.method)
    labelled = traces * workload.cot + (1 + method.teacher) * workload.answer
    counted[workload.batch * labelled, shape.hidden, shape.vocabulary] += base
    return counted


def attention_flops(workload: Workload, shape: ModelShape, *, recompute: bool = False) -> int:
    """Return the FLOPs of attention scores and weighted values, forward and twice that backward; causal masking is not deducted."""
    pairs = sum(tokens * visible for tokens, visible in passes(workload))
    return (3 + int(recompute)) * 2 * 2 * workload.batch * shape.layers * shape.heads * shape.head_size * pairs


def step_flops(workload: Workload, shape: ModelShape, *, recompute: bool = False) -> int:
    """Return all FLOPs of a step."""
    counted = products(workload, shape, recompute=recompute)
    multiplied = sum(2 * rows * inner * outer * count for (rows, inner, outer), count in counted.items())
    return multiplied + attention_flops(workload, shape, recompute=recompute)


def writes_trace(method: str) -> bool:
    """Return whether the student's own sequence has the trace, before a curriculum shortens it."""
    return METHODS[method].writes_cot or METHODS[method].curriculum == "remove_tokens"


def _iterations(workload: Workload) -> int:
    """Return how many passes make the latents: one for each of sequential ones, else T, of which more than M change nothing."""
    sequential = METHODS[workload.method].latents == "sequential"
    return workload.latents if sequential else min(workload.iterations, workload.latents)


def shape_of(workload: Workload) -> ModelShape:
    """Return the shape of the model with its actual vocabulary size and number of layers."""
    shape = SHAPES[workload.shape]
    if not shape.vocabulary:
        shape = replace(shape, vocabulary=len(build_tokenizer()))
    return replace(shape, layers=workload.layers or shape.layers)


def utilisation(workload: Workload, seconds: float) -> dict[str, Any]:
    """Return the FLOPs of a step, the rate of this machine for its matrix multiplications, and the share of that rate in percent."""
    shape, dtype = shape_of(workload), getattr(torch, workload.dtype)
    total = step_flops(workload, shape)
    alone = sum(count * _product_seconds(product, dtype, workload.device) for product, count in products(workload, shape).items())
    rate = (total - attention_flops(workload, shape)) / alone
    return {"GFLOP a step": total / 1e9, "GFLOP/s of its matrix products alone": rate / 1e9, "utilisation, %": 100 * total / rate / seconds}


def _product_seconds(product: Product, dtype: torch.dtype, device: str) -> float:
    rows, inner, outer = product
    left, right = torch.randn(rows, inner, dtype=dtype, device=device), torch.randn(outer, inner, dtype=dtype, device=device)
    return statistics.median(alternate({"product": lambda: torch.nn.functional.linear(left, right)}, TIMINGS, device)["product"])
