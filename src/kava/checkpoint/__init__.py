"""Checkpoints on disk: writing, reading, model cards, and import from the formats of PCCoT and CODI."""

from kava.checkpoint.files import (
    ADAPTER,
    CARD,
    PROJECTION,
    Trained,
    fitting,
    load_checkpoint,
    refuse_other_base,
    save_checkpoint,
    write_weights,
)
from kava.checkpoint.kava_config import KAVA_CONFIG, read_kava_config, recorded_prompt_ids
from kava.checkpoint.open import checkpoint_directory, open_checkpoint, results_directory

__all__ = [
    "ADAPTER",
    "CARD",
    "KAVA_CONFIG",
    "PROJECTION",
    "Trained",
    "checkpoint_directory",
    "fitting",
    "load_checkpoint",
    "open_checkpoint",
    "read_kava_config",
    "recorded_prompt_ids",
    "refuse_other_base",
    "results_directory",
    "save_checkpoint",
    "write_weights",
]
