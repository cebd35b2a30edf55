"""Preparing the training data: seconds and peak memory of a first start, which tokenises, and of a second, which maps.

The rows are the built-in generator's, drawn so that they are as long as GSM8k-AUG's, in its form (question, steps, answer).
"""

import json
import os
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from kava.config import MiniDataConfig, build_config
from kava.data.mini.problems import problems
from kava.tools.bench.timing import Run, peak_memory

# GSM8k-AUG's test rows have 240 characters of question and 43 of steps on average; these have 216 and 44.
FORM: dict[str, Any] = {"min_steps": 2, "max_steps": 7, "distractor_rate": 0.5}
BATCH, BATCHES = 128, 20
# What preparing 385,620 rows may take.
MEMORY_LIMIT = 2 * 2**30


def measure_data(rows: int, model: str) -> dict[str, Any]:
    """Two starts on the same rows, each in a fresh process with an empty cache at first.

    Args:
        rows: of the generated training set.
        model: whose tokenizer to use; a name as in `model.name`.

    Returns:
        `first` and `second`: seconds, processor seconds and bytes of each start; `source_bytes`, `cache_bytes`;
        `batch_seconds`: reading and padding a batch of `BATCH` random rows; `padding`: share of padding in all batches of `BATCH`,
        as training makes them and `shuffled`.
    """
    from kava.train.prepare import resolve_base

    base = resolve_base(build_config({}, "the benchmark", {"model.name": model}))
    with tempfile.TemporaryDirectory() as directory:
        source, cache = Path(directory, "rows.jsonl"), Path(directory, "cache")
        write_problems(source, rows)
        starts = [asdict(peak_memory(prepare_start, str(source), base, str(cache))) for _ in range(2)]
        train = next(cache.rglob("train.arrow"))
        return {
            "rows": rows,
            "batch": BATCH,
            "first": starts[0],
            "second": starts[1],
            "source_bytes": source.stat().st_size,
            "cache_bytes": sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()),
            "batch_seconds": _batch_seconds(train),
            "padding": _padding(train),
        }


def write_problems(path: Path, rows: int) -> None:
    """A JSON-lines file of so many problems."""
    with path.open("w", encoding="utf-8") as file:
        for problem in problems("train", MiniDataConfig(num_train=rows, **FORM)):
            file.write(json.dumps({"question": problem.question, "steps": problem.steps, "answer": problem.answer}) + "\n")


def prepare_start(source: str, base: str, cache: str) -> Run:
    """What `kava train` does with its data, ready to run; the cache lies at `cache`."""
    from kava.data.sequences import builder_of
    from kava.model.build import load_tokenizer
    from kava.train.prepare import prepare_data

    os.environ["KAVA_CACHE"] = cache
    config = build_config({}, "the benchmark", {"dataset.name": source})
    builder = builder_of(load_tokenizer(base), config.dataset)
    return partial(prepare_data, config, builder)


def _batch_seconds(path: Path) -> float:
    import torch

    from kava.data.collate import Collator
    from kava.data.encoded_rows import EncodedRows
    from kava.methods import METHODS

    rows = EncodedRows(path)
    collator = Collator(METHODS["kava"], 0, 4, num_latents=24)
    order = torch.randint(len(rows), (BATCHES, BATCH), generator=torch.Generator().manual_seed(0)).tolist()
    started = time.perf_counter()
    for numbers in order:
        collator.collate([rows[number] for number in numbers])
    return (time.perf_counter() - started) / BATCHES


def _padding(path: Path) -> dict[str, float]:
    import torch

    from kava.data.encoded_rows import EncodedRows
    from kava.train.sampler import LengthSortedSampler, padding_share

    lengths = EncodedRows(path).lengths
    shuffled = torch.randperm(len(lengths.total), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = LengthSortedSampler(lengths, BATCH, seed=0)
    return {
        "training": padding_share(lengths, list(sampler), BATCH, sampler.buckets),
        "shuffled": padding_share(lengths, shuffled, BATCH),
    }
