"""What a run needs before its first step: base model, encoded examples, validation questions."""

import sys
from dataclasses import dataclass
from typing import Any

from kava.config import Config
from kava.data.collate import Collator
from kava.data.example import Example
from kava.data.sequences import EncodedExample, SequenceBuilder
from kava.data.sources import train_validation
from kava.errors import UserError
from kava.methods import METHODS
from kava.model.sources import SMOLLM2_NAME, smollm2_directory
from kava.train.pretrain import ensure_mini_base

MINI_NAME = "builtin:mini"
SHOWN = 3


@dataclass(frozen=True)
class Prepared:
    """Training data of one run.

    Attributes:
        train: encoded examples.
        validation: questions for validation by generation.
        data: where they came from and what was left out, for result files.
    """

    train: list[EncodedExample]
    validation: list[Example]
    data: dict[str, Any]


def resolve_base(config: Config, quiet: bool = False) -> str:
    """The hub name or directory behind `model.name`; built-in and PyPI models are made on first use."""
    if config.model.name == MINI_NAME:
        return str(ensure_mini_base(config, quiet))
    if config.model.name == SMOLLM2_NAME:
        return str(smollm2_directory())
    return config.model.name


def prepare_data(config: Config, builder: SequenceBuilder) -> Prepared:
    """Load and encode the training data; rows longer than `dataset.max_length` are left out and counted.

    Raises:
        UserError: nothing is left to train on.
    """
    dataset = config.dataset
    train, validation = train_validation(
        dataset.name,
        cot_type=dataset.cot_type,
        train_split=dataset.train_split,
        validation_split=dataset.validation_split,
        on_bad_row=dataset.on_bad_row,
        mini=dataset.mini,
        limit=dataset.max_train_samples,
    )
    if not train.examples:
        raise UserError(f"no training row of '{dataset.name}' is left beside the validation questions; give more, or different, rows")
    encoded = builder.encode_all(train.examples)
    fitting = [example for example in encoded if example.length <= dataset.max_length]
    if not fitting:
        raise UserError(
            f"all {len(encoded)} training rows of '{dataset.name}' are longer than dataset.max_length {dataset.max_length} tokens; raise it"
        )
    too_long = [example.id for example, row in zip(train.examples, encoded, strict=True) if row.length > dataset.max_length]
    if too_long:
        named = ", ".join(too_long[:SHOWN]) + (", ..." if len(too_long) > SHOWN else "")
        print(
            f"kava: {len(too_long)} of {len(encoded)} training rows are longer than dataset.max_length {dataset.max_length} tokens; "
            f"left out: {named}",
            file=sys.stderr,
        )
    data = {
        "source": train.source,
        "fingerprint": train.fingerprint,
        "validation_fingerprint": validation.fingerprint,
        "rows": len(fitting),
        "validation_rows": min(len(validation.examples), config.evaluation.validation_samples),
        "too_long": len(too_long),
        "bad_rows": train.bad_rows,
        "validation_bad_rows": validation.bad_rows,
        "without_trace": train.skipped_no_trace,
        "note": train.note,
    }
    return Prepared(fitting, validation.examples[: config.evaluation.validation_samples], data)


def build_collator(config: Config, builder: SequenceBuilder) -> Collator:
    """The collator of the configured method, at stage 0 of its curriculum."""
    return Collator(
        METHODS[config.method],
        builder.tokenizer.pad_token_id,
        len(builder.prompt_ids),
        num_latents=config.latent.num_tokens,
        drop_last_step=config.dataset.drop_last_step,
        tokens_per_stage=config.training.tokens_per_stage,
        tokens_per_step=config.latent.tokens_per_step,
    )


def longest_entries(config: Config, examples: list[EncodedExample]) -> int:
    """The most cache entries that a padded batch of these examples can have."""
    question = max(len(example.question) for example in examples)
    rest = max(example.length - len(example.question) for example in examples)
    thought = config.latent.num_tokens + 2 if METHODS[config.method].thinks else 0
    return question + thought + rest


def last_stage(config: Config, examples: list[EncodedExample]) -> int:
    """The stage at which nothing of the written trace is left, for the longest example."""
    curriculum = METHODS[config.method].curriculum
    if curriculum == "remove_tokens":
        longest = max(len(example.cot(drop_last_step=False)) for example in examples)
        return -(-longest // config.training.tokens_per_stage)
    if curriculum == "replace_steps":
        # The last stage has all M latents and writes nothing, which is also how the model is asked at inference.
        return -(-config.latent.num_tokens // config.latent.tokens_per_step)
    return 0
