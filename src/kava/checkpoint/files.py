"""A trained model on disk: peft adapter (or full weights), `projection.safetensors`, tokenizer, `kava_config.json`, card, manifest.

    save_checkpoint(directory, trained)
    trained = load_checkpoint("outputs/mini/best_checkpoint")

A checkpoint is written to a temporary directory, flushed to disk, listed in a manifest of sizes and checksums, and renamed, so
that it is either complete or absent. Weights are safetensors; nothing is unpickled.
"""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import PickleError
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftModelForCausalLM, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kava.checkpoint.card import render_card
from kava.checkpoint.kava_config import KAVA_CONFIG, metadata_of, read_kava_config, recorded_prompt_ids
from kava.checkpoint.shipped import located
from kava.config import Config, recorded_config
from kava.config.differences import flatten
from kava.config.overrides import dotted
from kava.data.sequences import SPECIAL_TOKENS, SequenceBuilder, builder_of
from kava.errors import UserError, ran_out_of_memory, reason_of
from kava.generate import Reasoner
from kava.model.build import assemble, fingerprint_of, load_base, make_room, projection_of
from kava.model.fused_kernels import fuse_kernels
from kava.model.kava import KavaModel
from kava.model.quantization import compile_passes
from kava.model.smollm2 import SMOLLM2_NAME, smollm2_directory
from kava.model.tokenizer import load_tokenizer
from kava.results import checkpoint_hash
from kava.runtime.atomic import FORMAT, recover_unused, verify, write_atomic
from kava.runtime.hub import absolute, is_local

PROJECTION = "projection.safetensors"
CARD = "README.md"
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Configuration keys that determine which weights exist, and their shapes.
SHAPES_WEIGHTS = ("method", "model.name", "model.mini", "model.quantization", "lora", "loss.use_projection")


@dataclass
class Trained:
    """A trained model with its tokenizer, configuration and metadata.

    Attributes:
        model: the model.
        tokenizer: tokenizer with the new tokens.
        config: configuration of the run.
        base: hub name or directory of the base model, as it was resolved.
        metadata: metrics, step and provenance, free-form.
        prompt_ids: ids of the answer's fixed text that it was trained with; None: determined from tokenizer and configuration.
        manifest: `checkpoint_hash` of the checkpoint that it was loaded from.
    """

    model: KavaModel
    tokenizer: Any
    config: Config
    base: str
    metadata: dict[str, Any] = field(default_factory=dict)
    prompt_ids: list[int] | None = None
    manifest: str | None = None

    @property
    def builder(self) -> SequenceBuilder:
        """Builder of the token sequences that this model reads."""
        return builder_of(self.tokenizer, self.config.dataset, self.prompt_ids)

    def reasoner(self, num_latents: int | None = None, num_iterations: int | None = None) -> Reasoner:
        """Return a `Reasoner` that answers questions with this model; M and T default to the configured values."""
        latent = self.config.latent
        m, t = (
            latent.num_tokens if num_latents is None else num_latents,
            latent.num_iterations if num_iterations is None else num_iterations,
        )
        return Reasoner(self.model, self.builder, m, t)


def write_weights(directory: Path, trained: Trained, weights: dict[str, Tensor] | None = None) -> None:
    """Write the files of a checkpoint into an existing directory (no manifest, no rename).

    `weights` is a full state dict to write in place of the model's own weights, which are sharded over several processes.
    """
    model = trained.model
    language_model = model.backbone.model
    projection = model.projection.state_dict() if weights is None else _part(weights, "projection.")
    # The new tokens' rows are part of the adapter; peft would add the whole V x E embeddings because they were resized.
    options: dict[str, Any] = {"save_embedding_layers": False} if isinstance(language_model, PeftModel) else {}
    if weights is not None:
        options["state_dict"] = _part(weights, "backbone.model.")
    language_model.save_pretrained(directory, **options)
    save_file({name: tensor.contiguous() for name, tensor in projection.items()}, directory / PROJECTION)
    trained.tokenizer.save_pretrained(directory)
    content = {
        "format": FORMAT, "method": model.method.name, "base": trained.base, "base_fingerprint": model.base_fingerprint,
        "config": trained.config.to_dict(), "prompt_ids": trained.builder.prompt_ids, **trained.metadata,
    }  # fmt: skip
    (directory / KAVA_CONFIG).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    # Replaces the empty template that peft writes.
    (directory / CARD).write_text(render_card(trained.config, trained.base, trained.metadata), encoding="utf-8")


def _part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def save_checkpoint(directory: str | Path, trained: Trained, weights: dict[str, Tensor] | None = None) -> None:
    """Write a checkpoint atomically; an older one of the same name is replaced only when the new one is complete.

    `weights` as in `write_weights`.

    Raises:
        UserError: the disk is full or the place is read-only; what was there before is untouched.
    """
    write_atomic(Path(directory), lambda staging: write_weights(staging, trained, weights))


# PickleError: torch refuses to unpickle anything but tensors and plain values. ImportError: an adapter's settings can name a package.
UNREADABLE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, EOFError, ImportError, SafetensorError, PickleError, re.error
)  # fmt: skip


@contextmanager
def fitting(directory: str | Path | None) -> Iterator[None]:
    """Turn an error while loading the content of a complete checkpoint into one line for the user, whichever library raised it.

    Raises:
        UserError: the content does not fit this configuration, base model or program.
    """
    try:
        yield
    except UNREADABLE as error:
        if ran_out_of_memory(error):
            raise
        raise UserError(
            f"checkpoint {directory} does not fit ({type(error).__name__}: {reason_of(error)}): it is of another configuration, base model "
            "or program; use those that it was written with, or train again"
        ) from error


def load_checkpoint(directory: str | Path, overrides: dict[str, Any] | None = None, device: str | None = None) -> Trained:
    """Load a checkpoint for inference or further training.

    Args:
        directory: what `save_checkpoint` wrote, or `builtin:mini`, the trained model of the package.
        overrides: dotted configuration keys to change, such as `latent.num_iterations`. `model.name` sets where an adapter's base model
            is now: its weights must be those the adapter was trained on, its name may differ.
        device: device of the model (default: the CPU).

    Raises:
        UserError: the checkpoint is missing or damaged, does not fit, or its base model cannot be found.
    """
    directory, overrides = located(directory), dotted(overrides or {})
    recover_unused(directory)
    manifest = checkpoint_hash(directory)
    content = read_kava_config(directory)
    problem = verify(directory)
    if problem:
        raise UserError(f"checkpoint {directory} is damaged: {problem}; use an older one or copy it again")
    config = recorded_config(content["config"], str(directory / KAVA_CONFIG))
    if "imported_from" in content and "question_suffix" not in content["config"].get("dataset", {}):
        reason = "was imported by an earlier version, which did not use the original prompt format; import it again"
        print(f"kava: checkpoint {directory} {reason}", file=sys.stderr, flush=True)
    base = _base_of(directory, content, config, overrides)
    if overrides:
        _refuse_other_weights(directory, config, overrides)
        config = recorded_config(content["config"], str(directory / KAVA_CONFIG), overrides)
    # A checkpoint from someone else must not run code: only an override of the current user can allow that.
    config.model.trust_remote_code, stored = overrides.get("model.trust_remote_code") is True, config.model.trust_remote_code
    with fitting(directory):
        kava, tokenizer = _load_model(directory, content, config, base, device or "cpu")
    if checkpoint_hash(directory) != manifest:
        raise UserError(f"checkpoint {directory} was replaced while it was loaded; load it again")
    config.model.trust_remote_code = stored
    if device:
        kava.to(device)
        if config.system.fused_kernels:
            fuse_kernels(kava.backbone)
        if config.system.cuda_graphs and torch.device(device).type == "cuda":
            kava.backbone.use_graphs()
    # Only an override sets the number of threads: the recorded one belongs to the training machine.
    if threads := overrides.get("system.num_threads"):
        torch.set_num_threads(threads)
    metadata = metadata_of(content)
    reworded = not {"dataset.answer_prompt", "dataset.answer_separator", "dataset.answer_type"}.isdisjoint(overrides)
    prompt_ids = None if reworded else recorded_prompt_ids(directory, content, tokenizer, config)
    return Trained(kava.eval(), tokenizer, config, base, metadata, prompt_ids, manifest)


def _base_of(directory: Path, content: dict[str, Any], config: Config, overrides: dict[str, Any]) -> str:
    """Return where an adapter's base model is: the override `model.name` (removed from the overrides), else its place in training.

    Raises:
        UserError: that directory no longer exists.
    """
    if not (directory / ADAPTER).exists():
        return str(content["base"])
    base = absolute(str(overrides.pop("model.name", content["base"])))
    if not is_local(base) or Path(base).exists():
        return base
    if config.model.name == SMOLLM2_NAME:
        return str(smollm2_directory())
    # The whole project may have been moved, with a base beside the run.
    if Path(config.model.name).is_dir():
        return absolute(config.model.name)
    made_here = config.model.name.startswith("builtin:")
    made = "" if not made_here else f"train with model.name {config.model.name} and seed {config.training.seed} again, or "
    raise UserError(f"the base model of checkpoint {directory} is no longer in {base}: {made}say where it is with --model.name DIRECTORY")


def _load_model(directory: Path, content: dict[str, Any], config: Config, base: str, device: str) -> tuple[KavaModel, Any]:
    tokenizer = load_tokenizer(str(directory))
    special_ids = tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS)
    recorded = str(content.get("base_fingerprint", ""))
    if (directory / ADAPTER).exists():
        causal_lm = load_base(base, config, device)
        refuse_other_base(directory, recorded, fingerprint_of(causal_lm), base)
        make_room(causal_lm, special_ids)
        if not (directory / ADAPTER_WEIGHTS).is_file():
            raise UserError(f"checkpoint {directory} has no {ADAPTER_WEIGHTS}; other forms of weights are not loaded")
        adapter = PeftConfig.from_pretrained(str(directory))
        adapter.inference_mode = False
        model = PeftModelForCausalLM(causal_lm, adapter)
        if any(getattr(module, "lora_variant", None) for module in model.modules()):
            raise UserError(f"checkpoint {directory}: {ADAPTER} asks for a variant of LoRA (DoRA, aLoRA); adapters are plain LoRA here")
    else:
        model = load_base(str(directory), config, device)
    projection = projection_of(model, config)
    load_trained(directory, model, projection)
    kava = assemble(model, special_ids, projection, config)
    rows = kava.backbone.causal_lm.get_input_embeddings().weight.shape[0]
    if beyond := [id_ for id_ in (*tokenizer.all_special_ids, tokenizer.pad_token_id) if id_ >= rows]:
        text = tokenizer.convert_ids_to_tokens(beyond[0])
        raise UserError(
            f"checkpoint {directory}: its tokenizer's {text!r} is token {beyond[0]}, its model has {rows}; copy the checkpoint again"
        )
    if config.system.compile:
        compile_passes(kava.backbone)
    kava.base_fingerprint = recorded
    return kava, tokenizer


def load_trained(directory: Path, language_model: Any, projection: nn.Module) -> None:
    """Load a checkpoint's projection, and its adapter where the model has one: full weights are loaded as a model, by `load_base`.

    Raises:
        ValueError: the adapter's file lacks a trained weight, or has one that the model does not.
    """
    projection.load_state_dict(load_file(directory / PROJECTION))
    if isinstance(language_model, PeftModel):
        beyond, absent = set_adapter(language_model, load_file(directory / ADAPTER_WEIGHTS))
        if beyond or absent:
            raise ValueError(f"{ADAPTER_WEIGHTS} lacks {absent[0]}" if absent else f"the model has no {beyond[0]}")


def set_adapter(model: PeftModel, weights: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    """Copy an adapter's weights into a model; returns the names that it does not have, and those of its trained weights not among them."""
    outcome = set_peft_model_state_dict(model, weights)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return outcome.unexpected_keys, [name for name in trained if name in outcome.missing_keys]


def _refuse_other_weights(directory: Path, config: Config, overrides: dict[str, Any]) -> None:
    """Refuse overrides of settings that the weights depend on."""
    stored = flatten(config.to_dict())
    for key, value in overrides.items():
        if key.startswith(SHAPES_WEIGHTS) and stored.get(key) != value:
            raise UserError(f"checkpoint {directory} was trained with {key} {stored.get(key)!r}, not {value!r}; leave the override out")


def refuse_other_base(directory: Path, recorded: str, found: str, base: str) -> None:
    """Refuse to load an adapter on base weights that it was not trained on.

    Raises:
        UserError: the fingerprints differ (an empty one is unknown).
    """
    if recorded and found and recorded != found:
        raise UserError(f"the base model {base} is not the one that checkpoint {directory} was trained on: its weights have changed")
