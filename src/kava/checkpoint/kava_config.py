"""`kava_config.json` of a checkpoint: method, base model, configuration and training metadata."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from kava.checkpoint.shipped import located
from kava.config import Config
from kava.errors import UserError
from kava.results import MODEL_KEYS
from kava.runtime.atomic import FORMAT, not_readable

KAVA_CONFIG = "kava_config.json"


class _Data(BaseModel):
    source: str
    rows: int
    fingerprint: str


class _Training(BaseModel):
    """Training metadata for the model card, as far as the checkpoint records it."""

    step: int | None = None
    data: _Data | None = None
    validation: dict[str, float | None] | None = None
    provenance: dict[str, Any] | None = None


def read_kava_config(directory: str | Path) -> dict[str, Any]:
    """Read and check the `kava_config.json` of a checkpoint.

    Raises:
        UserError: there is no such checkpoint, or its configuration cannot be read.
    """
    path = located(directory) / KAVA_CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"'{directory}' is not a checkpoint: it has no {KAVA_CONFIG}; train first (train.py --output_dir {directory}; a run that ended "
            "before its first validation has none yet), or give a directory such as outputs/RUN/best_checkpoint"
        ) from None
    except PermissionError:
        raise not_readable(path) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy the checkpoint again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not of the format '{FORMAT}'")
    if not isinstance(content.get("config"), dict) or not isinstance(content.get("base"), str):
        raise UserError(f"{path} says neither its configuration nor its base model; copy the checkpoint again")
    if not isinstance(content.get("name"), str | None) or content.get("method") != content["config"].get("method", Config().method):
        raise UserError(f"{path} is inconsistent: 'name' must be a string, and 'method' that of 'config'; copy the checkpoint again")
    try:
        _Training.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}; copy the checkpoint again") from None
    return content


def metadata_of(content: dict[str, Any]) -> dict[str, Any]:
    """Return the training metadata of a `kava_config.json`: all keys that do not define the model."""
    return {key: value for key, value in content.items() if key not in MODEL_KEYS}


def recorded_prompt_ids(directory: Path, content: dict[str, Any], tokenizer: Any, config: Config) -> list[int]:
    """Return the ids of the answer's fixed text that a checkpoint was trained with.

    Older checkpoints do not record them: their fixed text ended with the answer prompt, even if a space token follows before any number.

    Raises:
        UserError: the recorded ids are not tokens of the tokenizer.
    """
    recorded = content.get("prompt_ids")
    if recorded is None:
        ids: list[int] = tokenizer(config.dataset.answer_prompt, add_special_tokens=False).input_ids
        return ids
    if not isinstance(recorded, list) or not recorded or not all(type(id_) is int and 0 <= id_ < len(tokenizer) for id_ in recorded):
        raise UserError(f"{directory / KAVA_CONFIG}: prompt_ids are no tokens of its tokenizer; copy the checkpoint again")
    return recorded
