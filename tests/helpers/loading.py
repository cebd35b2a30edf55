"""Splits of a data source in memory, by name."""

from typing import Any

from kava.config import MiniDataConfig
from kava.config.schema import DatasetConfig
from kava.data.answer_types import AnswerType
from kava.data.example import CotType
from kava.data.sources.directory import canonical_split
from kava.data.sources.resolve import open_split
from kava.data.sources.splits import Splits, open_training
from kava.data.sources.stream import BUILTIN, Loaded, OnBadRow, Rules, builtin_stream, stream


def load_examples(
    name: str,
    split: str,
    *,
    cot_type: CotType,
    on_bad_row: OnBadRow = "error",
    mini: MiniDataConfig | None = None,
    limit: int | None = None,
    answer_type: AnswerType = "number",
) -> Loaded:
    """One split; rows of a training split without a step of kind `cot_type` are left out and counted."""
    if name.startswith(BUILTIN):
        return builtin_stream(name, split, cot_type, mini, limit).load()
    need_trace = canonical_split(split) == "train"
    return stream(open_split(name, split, cot_type), split, Rules(cot_type, on_bad_row, limit, need_trace, answer_type=answer_type)).load()


def open_named(name: str, limit: int | None = None, **fields: Any) -> Splits:
    """`open_training` of a configuration with these fields."""
    return open_training(DatasetConfig(name=name, max_train_samples=limit, **fields))


def train_validation(name: str, limit: int | None = None, **fields: Any) -> tuple[Loaded, Loaded]:
    """Training and validation examples that share no question."""
    train, validation = open_named(name, limit, **fields).read()
    return train.load(), validation
