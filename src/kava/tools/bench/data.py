"""Data preparation benchmark: time and peak memory of a first start, which tokenizes, and of a second one, which memory-maps.

The rows come from the built-in generator, with lengths close to those of GSM8k-AUG and in its format (question, steps, answer).
"""

import json
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kava.config import MiniDataConfig, build_config
from kava.data.collate import Collator
from kava.data.encoded_rows import EncodedRows
from kava.data.mini.problems import problems
from kava.data.sequences import builder_of
from kava.methods import METHODS
from kava.model.tokenizer import load_tokenizer
from kava.tools.bench.record import Found
from kava.tools.bench.timing import MIB, Run, peak_memory
from kava.train.prepare import prepare_data, resolve_base
from kava.train.sampler import LengthSortedSampler, padding_share

# Test rows of GSM8k-AUG have on average 240 characters of question and 43 of steps; these have 216 and 44.
FORM: dict[str, Any] = {"min_steps": 2, "max_steps": 7, "distractor_rate": 0.5}
BATCH, BATCHES = 128, 20
# Memory limit for preparing 385,620 rows, in bytes.
MEMORY_LIMIT = 2 * 2**30


def measure_data(rows: int, model: str) -> Found:
    """Measure two starts on the same rows in fresh processes, the first with an empty cache; then reading speed and padding of the rows.

    `rows` are generated, and `model` (a name as in `model.name`) has the tokenizer.
    """
    base = resolve_base(build_config({}, "the benchmark", {"model.name": model}))
    with tempfile.TemporaryDirectory() as directory:
        source, cache = Path(directory, "rows.jsonl"), Path(directory, "cache")
        write_problems(source, rows)
        memory = {start: peak_memory(prepare_start, str(source), base, str(cache)) for start in ("first", "second")}
        encoded = EncodedRows(next(cache.rglob("train.arrow")))
        starts = [{"start": start, **of.cost, "before it": of.rest / MIB} for start, of in memory.items()]
        read = {
            "rows": rows, "MiB": source.stat().st_size / MIB,
            "MiB tokenised": sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) / MIB,
            f"seconds of a batch of {BATCH}": _batch_seconds(encoded), **_padding(encoded),
        }  # fmt: skip
    return Found({"training data": starts, "its rows": [read]}, {"data.limit_over_peak_memory": MEMORY_LIMIT / memory["first"].peak})


def write_problems(path: Path, rows: int) -> None:
    """Write a JSON Lines file with that many generated problems."""
    with path.open("w", encoding="utf-8") as file:
        for problem in problems("train", MiniDataConfig(num_train=rows, **FORM)):
            file.write(json.dumps({"question": problem.question, "steps": problem.steps, "answer": problem.answer}) + "\n")


def prepare_start(source: str, base: str, cache: str) -> Run:
    """Return a function that prepares the data as `kava train` does; the cache directory is `cache`."""
    os.environ["KAVA_CACHE"] = cache
    config = build_config({}, "the benchmark", {"dataset.name": source})
    return partial(prepare_data, config, builder_of(load_tokenizer(base), config.dataset))


def _batch_seconds(rows: EncodedRows) -> float:
    """Return the mean seconds to read and pad a batch of random rows."""
    collator = Collator(METHODS["kava"], 0, 4, num_latents=24)
    order = torch.randint(len(rows), (BATCHES, BATCH), generator=torch.Generator().manual_seed(0)).tolist()
    started = time.perf_counter()
    for numbers in order:
        collator.collate([rows[number] for number in numbers])
    return (time.perf_counter() - started) / BATCHES


def _padding(rows: EncodedRows) -> dict[str, float]:
    """Return the percentage of padding in batches of size `BATCH`: sorted by length as in training, and shuffled."""
    shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = LengthSortedSampler(rows.lengths, BATCH, seed=0)
    return {
        "padding, %": 100 * padding_share(rows.lengths, sampler.order(0), BATCH, sampler.buckets),
        "shuffled, %": 100 * padding_share(rows.lengths, shuffled, BATCH),
    }
