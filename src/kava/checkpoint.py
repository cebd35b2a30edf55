"""A trained model on disk: peft adapter (or full weights), `projection.safetensors`, tokenizer, `kava_config.json`, card, manifest.

    save_checkpoint(directory, trained)
    trained = load_checkpoint("outputs/mini/best_checkpoint")

A checkpoint is written beside its final name, flushed to disk, listed in a manifest of sizes and checksums, and renamed:
it is whole or it is not there. Weights are safetensors; nothing is unpickled.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import PickleError
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from kava.cards.render import render_card
from kava.config import Config, build_config
from kava.data.sequences import SPECIAL_TOKENS, SequenceBuilder
from kava.errors import UserError
from kava.methods import METHODS
from kava.model.backbone import Backbone
from kava.model.build import load_base, load_tokenizer, make_room, settings_of
from kava.model.kava import KavaModel
from kava.model.projection import build_projection

FORMAT = "kava.checkpoint/1"
KAVA_CONFIG = "kava_config.json"
PROJECTION = "projection.safetensors"
MANIFEST = "manifest.json"
CARD = "README.md"
ADAPTER = "adapter_config.json"


@dataclass
class Trained:
    """A model, what it was made with, and what is known about it.

    Attributes:
        model: the model.
        tokenizer: with the new tokens.
        config: of the run.
        base: hub name or directory of the base model, as it was resolved.
        metadata: metrics, step and provenance, free-form.
    """

    model: KavaModel
    tokenizer: Any
    config: Config
    base: str
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def builder(self) -> SequenceBuilder:
        """The sequences this model reads."""
        return SequenceBuilder(self.tokenizer, self.config.dataset.answer_prompt)


def write_weights(directory: Path, trained: Trained) -> None:
    """Write the files of a checkpoint into an existing directory (no manifest, no rename)."""
    model = trained.model
    weights = model.backbone.model
    # The new tokens' rows are part of the adapter; peft would add the whole V x E embeddings because they have grown.
    weights.save_pretrained(directory, **({"save_embedding_layers": False} if isinstance(weights, PeftModel) else {}))
    save_file({name: tensor.contiguous() for name, tensor in model.projection.state_dict().items()}, directory / PROJECTION)
    trained.tokenizer.save_pretrained(directory)
    content = {"format": FORMAT, "method": model.method.name, "base": trained.base, "config": trained.config.to_dict(), **trained.metadata}
    (directory / KAVA_CONFIG).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    # peft leaves an empty form there.
    (directory / CARD).write_text(render_card(trained.config, trained.base, trained.metadata), encoding="utf-8")


def save_checkpoint(directory: str | Path, trained: Trained) -> None:
    """Write a checkpoint, all or nothing; an older one of the same name is replaced only when the new one is whole.

    Raises:
        UserError: the disk is full or the place is read-only; what was there before is untouched.
    """
    write_whole(Path(directory), lambda staging: write_weights(staging, trained))


def write_whole(directory: Path, write: Callable[[Path], None]) -> None:
    """Make a sealed directory out of what `write` puts into an empty one, all or nothing.

    Raises:
        UserError: as `save_checkpoint`.
    """
    staging = directory.with_name(f".{directory.name}.writing")
    with naming_disk_errors(directory):
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            write(staging)
            seal(staging)
            publish(staging, directory)
        except Exception:
            shutil.rmtree(staging, ignore_errors=True)
            recover(directory)
            raise


@contextmanager
def naming_disk_errors(directory: Path) -> Iterator[None]:
    """Turn a failed write inside the block into one line for the user, whichever library met it.

    Raises:
        UserError: the disk is full or the place is read-only.
    """
    try:
        yield
    except Exception as error:
        # safetensors and tokenizers (Rust) and torch.save (C++) have error types of their own for a disk that is full.
        if not isinstance(error, OSError) and "(os error " not in str(error) and "inline_container" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"checkpoint {directory} could not be written ({reason}): free some space or choose another --output_dir"
        ) from error


@contextmanager
def fitting(directory: str | Path | None) -> Iterator[None]:
    """Turn a failure to load what a whole checkpoint holds into one line for the user, whichever library met it.

    Raises:
        UserError: the content is not what this program wrote for this configuration and base model.
    """
    try:
        yield
    # PickleError: torch refuses to unpickle anything but tensors and plain values.
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, EOFError, SafetensorError, PickleError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"checkpoint {directory} does not fit ({type(error).__name__}: {reason}): it is of another configuration, base model or program"
        ) from error


def seal(directory: Path) -> None:
    """Write the manifest of a finished directory and flush everything to disk."""
    files = {
        str(path.relative_to(directory)): _entry(path) for path in sorted(directory.rglob("*")) if path.is_file() and path.name != MANIFEST
    }
    (directory / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}, indent=2) + "\n")
    for path in [*(p for p in directory.rglob("*") if p.is_file()), directory]:
        _flush(path)


def publish(staging: Path, directory: Path) -> None:
    """Give a sealed directory its final name."""
    old = _set_aside(directory)
    staging.rename(directory)
    _flush(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def discard(directory: Path) -> None:
    """Delete a checkpoint, in such a way that no half of it is ever seen under its name."""
    shutil.rmtree(_set_aside(directory), ignore_errors=True)


def _set_aside(directory: Path) -> Path:
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    return old


def tidy(run: Path) -> None:
    """Remove what a killed run left half written or half deleted."""
    for pattern in (".*.writing", ".writing", ".*.old"):
        for rest in run.glob(pattern):
            shutil.rmtree(rest, ignore_errors=True)
    for rest in run.glob(".*.tmp"):
        rest.unlink(missing_ok=True)


def recover(directory: Path) -> None:
    """Undo a `publish` that was cut off between its two renames: the older checkpoint gets its name back."""
    old = directory.with_name(f".{directory.name}.old")
    if old.exists() and not directory.exists():
        old.rename(directory)


def verify(directory: str | Path) -> str | None:
    """What is wrong with a checkpoint (a file that is missing, cut off or changed), or None if it is whole."""
    directory = Path(directory)
    try:
        files = json.loads((directory / MANIFEST).read_text())["files"]
        for name, expected in files.items():
            path = directory / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes in place of {expected['bytes']}"
            if _checksum(path) != expected["sha256"]:
                return f"{name} does not match its checksum"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def read_kava_config(directory: str | Path) -> dict[str, Any]:
    """The `kava_config.json` of a checkpoint.

    Raises:
        UserError: there is no such checkpoint, or its configuration cannot be read.
    """
    path = Path(directory) / KAVA_CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"'{directory}' is not a checkpoint: it has no {KAVA_CONFIG}; give a directory such as outputs/RUN/best_checkpoint"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy the checkpoint again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not of the format '{FORMAT}'")
    return content


def load_checkpoint(directory: str | Path, overrides: dict[str, Any] | None = None, device: str | None = None) -> Trained:
    """Load a checkpoint for inference or further training.

    Args:
        directory: what `save_checkpoint` wrote.
        overrides: dotted configuration keys to change, such as `latent.num_iterations`.
        device: where the model goes (default: stays on the CPU).

    Raises:
        UserError: it is missing, damaged, or its base model cannot be found.
    """
    directory = Path(directory)
    recover(directory)
    content = read_kava_config(directory)
    problem = verify(directory)
    if problem:
        raise UserError(f"checkpoint {directory} is damaged: {problem}; use an older one or copy it again")
    config = build_config(content["config"], str(directory / KAVA_CONFIG), overrides)
    tokenizer = load_tokenizer(str(directory))
    special_ids = tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS)
    model = (
        _load_adapter(directory, content["base"], config, special_ids)
        if (directory / ADAPTER).exists()
        else load_base(str(directory), config)
    )
    backbone = Backbone(model, special_ids)
    method = METHODS[config.method]
    embeddings = backbone.causal_lm.get_input_embeddings().weight
    projection = build_projection(method.uses_projection and config.loss.use_projection, embeddings.shape[1], embeddings)
    projection.load_state_dict(load_file(directory / PROJECTION))
    kava = KavaModel(backbone, projection, method, settings_of(config)).eval()
    if device:
        kava.to(device)
    metadata = {key: value for key, value in content.items() if key not in ("format", "method", "base", "config")}
    return Trained(kava, tokenizer, config, content["base"], metadata)


def _load_adapter(directory: Path, base: str, config: Config, special_ids: list[int]) -> Any:
    causal_lm = load_base(base, config)
    make_room(causal_lm, special_ids)
    return PeftModel.from_pretrained(causal_lm, str(directory), is_trainable=True)


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _checksum(path)}


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
