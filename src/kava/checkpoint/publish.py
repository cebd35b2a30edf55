"""Publish checkpoints: save them with a model card that lists their results, push them to the hub, or merge their adapter."""

import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kava.checkpoint.card import render_card
from kava.checkpoint.files import CARD, Trained, load_checkpoint, write_weights
from kava.checkpoint.kava_config import KAVA_CONFIG, metadata_of, read_kava_config
from kava.checkpoint.open import checkpoint_directory
from kava.config import Config, recorded_config
from kava.config.differences import flatten
from kava.errors import UserError, reason_of
from kava.results import Result, verified_results, write_text
from kava.runtime.atomic import refuse_foreign, write_atomic
from kava.runtime.hub import is_local

_WRITING = ("method", "evaluation.use_latent", "evaluation.temperature")


def save_with_card(
    trained: Trained, results: Sequence[Result], directory: Path, *, base: str | None = None, name: str | None = None
) -> None:
    """Write a checkpoint with its results in the card; see `kava.Model.save_pretrained`.

    Raises:
        UserError: the directory cannot be written to, or contains something other than a checkpoint.
    """
    refuse_foreign(directory, "choose another directory")
    trained = replace(trained, base=base or trained.base)

    def write(staging: Path) -> None:
        write_weights(staging, trained)
        if base is not None:
            _rename_base(staging, base)
        card = render_card(trained.config, trained.base, trained.metadata, results, name)
        (staging / CARD).write_text(card, encoding="utf-8")

    write_atomic(directory, write, cure="choose another directory")


def push(
    trained: Trained,
    results: Sequence[Result],
    name: str,
    *,
    base: str | None,
    private: bool | None,
    token: str | None,
    commit: dict[str, Any],
) -> str:
    """Upload a checkpoint to the hub under `name`; see `kava.Model.push_to_hub`.

    Raises:
        UserError: the base model exists on this machine only, or the hub refuses the upload.
    """
    from huggingface_hub import HfApi

    needed = base or trained.base
    if trained.config.lora.enabled and is_local(needed):
        raise UserError(f"base model '{needed}' is on this machine alone: give base='HUB_NAME', or merge the adapter (kava merge)")
    with tempfile.TemporaryDirectory() as work:
        save_with_card(trained, results, Path(work) / "model", base=base, name=name)
        api = HfApi(token=token)
        try:
            api.create_repo(name, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=name, folder_path=str(Path(work) / "model"), **commit))
        except Exception as error:  # the hub's, its client's and the operating system's
            cure = "log in (hf auth login), and check the name (owner/model) and the connection"
            raise UserError(f"'{name}' could not be pushed to the hub ({reason_of(error)}); {cure}") from None


def merge(source: str | Path, directory: str | Path) -> Trained:
    """Merge a checkpoint's adapter into its base model, and write a plain transformers model that is also a full-weight checkpoint.

    Raises:
        UserError: the source is not a checkpoint with an adapter, its base model is quantized, or the directory cannot be written to.
    """
    refuse_foreign(Path(directory), "choose another directory")
    place = checkpoint_directory(source)
    trained = load_checkpoint(place)
    if not trained.config.lora.enabled:
        raise UserError(f"checkpoint {source} has full weights already; there is no adapter to merge")
    if trained.config.model.quantization != "none":
        raise UserError(f"checkpoint {source} has a 4-bit base model, which merging would round again; use the adapter as it is")
    trained.model.backbone.model = trained.model.backbone.model.merge_and_unload()
    config = trained.config.model_copy(update={"lora": trained.config.lora.model_copy(update={"enabled": False})})
    merged = replace(trained, config=config)
    save_with_card(merged, results_beside(place, config), Path(directory))
    return merged


def results_beside(directory: Path, config: Config) -> list[Result]:
    """Return the results in the directory of the run that `kava evaluate` wrote for exactly this checkpoint on full test sets.

    Args:
        directory: the checkpoint.
        config: how the model answers; results that were measured with other latents or another way of writing are left out.
    """
    if not (directory / KAVA_CONFIG).exists():
        return []
    found, problems = _measured(directory, config)
    for problem in problems:
        print(f"kava: not on the model card: {problem}", file=sys.stderr)
    return found


def _measured(directory: Path, config: Config) -> tuple[list[Result], list[str]]:
    found, problems = verified_results(sorted(directory.parent.glob("results_*.yaml")), directory)
    return [result for result in found if _answers(result.run.config) == _answers(config.to_dict())], problems


def _answers(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that decide what a trained model answers; earlier versions wrote none of the last two."""
    settings = {"evaluation.use_latent": True, "evaluation.temperature": 0.0, **flatten(config)}
    return {key: value for key, value in settings.items() if key.startswith("latent.") or key in _WRITING}


def refresh_card(directory: Path) -> None:
    """Rewrite the card of a checkpoint with the current results of its run; a card that may not be written stays unchanged."""
    content = read_kava_config(directory)
    config = recorded_config(content["config"], str(directory / KAVA_CONFIG))
    results, _ = _measured(directory, config)
    card = render_card(config, content["base"], metadata_of(content), results)
    with contextlib.suppress(UserError):
        write_text(directory / CARD, card)


def _rename_base(directory: Path, base: str) -> None:
    """Change the recorded name of the base model in both files that contain it."""
    content = read_kava_config(directory) | {"base": base}
    content["config"]["model"]["name"] = base
    (directory / KAVA_CONFIG).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    adapter = directory / "adapter_config.json"
    if adapter.exists():
        adapter.write_text(json.dumps(json.loads(adapter.read_text()) | {"base_model_name_or_path": base}, indent=2) + "\n")
