"""Build a `KavaModel` from a configuration: base model, new tokens, LoRA, projection. The model itself never sees the configuration."""

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from kava.cache.attention import PREFIX, register_backends
from kava.cache.recompute import recompute_layers
from kava.config import Config
from kava.data.sequences import SPECIAL_TOKENS
from kava.errors import UserError
from kava.methods import METHODS
from kava.model.backbone import Backbone
from kava.model.cpu_kernels import fuse_on_cpu
from kava.model.kava import KavaModel, Settings
from kava.model.projection import build_projection
from kava.model.quantization import compile_passes, four_bit, keep_gradients
from kava.model.requirements import check_packages
from kava.model.suitability import check_architecture, check_behaviour
from kava.runtime.hub import cache_first, first_line, in_cache, is_local, model_is_cached, refusal
from kava.runtime.stage import stage

T = TypeVar("T")
HASHED_VALUES = 16


def silence_libraries() -> None:
    """Keep transformers' own progress bars and notices out of our output."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    # These warnings are for authors of libraries; a user cannot act on them.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False", module="peft")


def stored_dtype(config: Config, on_gpu: bool) -> torch.dtype:
    """The dtype of the base model's weights. Parameters trained next to a frozen base are always float32."""
    if config.model.dtype != "auto":
        return cast(torch.dtype, getattr(torch, config.model.dtype))
    return torch.bfloat16 if on_gpu and config.lora.enabled and config.system.mixed_precision == "bf16" else torch.float32


_OTHER_BACKEND = "model '{base}' cannot run with model.attn_implementation {backend}; set it to eager"


def load_base(base: str, config: Config, device: str | torch.device = "cpu") -> Any:
    """Load a published base model with this project's attention backend, on the CPU.

    Args:
        base: directory or hub name.
        config: configuration of the run.
        device: where the model will run, which decides the dtype of `model.dtype: auto`.

    Raises:
        UserError: it cannot be found or loaded, cannot reason in latents, or a package that it needs is not installed.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    register_backends()
    check_packages(config)
    backend = config.model.attn_implementation
    quantized = {} if config.model.quantization == "none" else {"quantization_config": four_bit(config)}
    remote = config.model.trust_remote_code
    # The revision applies only to the configured name, not to another base (another project's checkpoint names its own).
    revision = config.model.revision if base == config.model.name else None
    published = {"trust_remote_code": remote, "revision": revision}

    def load() -> Any:
        shape = AutoConfig.from_pretrained(base, **published)
        check_architecture(base, shape)
        if backend == "sdpa" and getattr(shape.get_text_config(), "attn_logit_softcapping", None) is not None:
            # transformers 5.17 runs it without the cap (Gemma-2), 5.23 refuses it.
            raise UserError(_OTHER_BACKEND.format(base=base, backend=backend))
        return AutoModelForCausalLM.from_pretrained(
            base,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype=stored_dtype(config, torch.device(device).type == "cuda"),
            attn_implementation=PREFIX + backend,
            # Other weight formats are pickle files.
            use_safetensors=True,
            **published,
            **quantized,
        )

    try:
        with stage(f"loading {base}"):
            causal_lm, found = from_hub(base, not remote and model_is_cached(base, revision), load)
        # transformers draws at random what the files lack, or have in another shape.
        random = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
        if name := next((name for name, _ in causal_lm.named_parameters() if name in random), None):
            cure = "copy its files again, or name a model with all of them, a language-model head included"
            raise UserError(f"model '{base}' has no {name} of the shape that its config.json says: {cure}")
        keep_gradients(causal_lm)
        return causal_lm
    except (OSError, ValueError, KeyError, SafetensorError, StrictDataclassError) as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"model '{base}' needs code from its repository; if you trust it, set model.trust_remote_code to true"
            ) from None
        if "attn_implementation" in str(error):
            raise UserError(_OTHER_BACKEND.format(base=base, backend=backend)) from None
        raise not_loaded(f"model '{base}'", base, error) from None


def from_hub(base: str, complete: bool, load: Callable[[], T]) -> T:
    # A path is never looked up on the hub, whether it exists or not.
    return load() if is_local(base) else cache_first("model", base, complete, load)


def not_loaded(what: str, base: str, error: Exception) -> UserError:
    """The error for a base model that could not be loaded: a bad directory, damaged files in the cache, or a problem with the hub name."""
    if Path(base).is_dir():
        return UserError(f"{what} cannot be loaded ({first_line(error)}): copy the directory again, or set model.name to another")
    if is_local(base):
        return UserError(
            f"{what} cannot be loaded: directory {base} does not exist; set model.name to one that does, or a hub name such as owner/model"
        )
    if in_cache(base, "config.json") and isinstance(error, SafetensorError):
        return UserError(f"{what} cannot be loaded ({first_line(error)}): its files are damaged; hf download --force-download {base}")
    return refusal("model", base, error)


def build_model(base: str, tokenizer: Any, config: Config, device: str | torch.device = "cpu") -> KavaModel:
    """Build a model that is ready to train on `device`; it stays on the CPU.

    Seed torch first: new rows, adapters and projection are drawn from its generator.
    """
    causal_lm = load_base(base, config, device)
    fingerprint = fingerprint_of(causal_lm)
    special_ids = add_token_rows(causal_lm, tokenizer)
    projection = projection_of(causal_lm, config)
    language_model = add_lora(causal_lm, special_ids, config) if config.lora.enabled else causal_lm
    # Before anything else runs the model.
    check_behaviour(base, Backbone(language_model, special_ids), unrotates=METHODS[config.method].kv and config.loss.kv_rope == "pre")
    kava = assemble(language_model, special_ids, projection, config)
    kava.backbone.fused = config.system.fused_cross_entropy
    if config.training.gradient_checkpointing:
        recompute_layers(kava.backbone.decoder)
    if config.system.compile:
        compile_passes(kava.backbone)
    kava.base_fingerprint = fingerprint
    return kava


def random_model(shape: Any, config: Config, device: str = "cpu") -> KavaModel:
    """A model with random weights from a transformers configuration, on `device` ("meta": no weights); new tokens take the last rows."""
    from transformers import AutoModelForCausalLM

    silence_libraries()
    register_backends()
    special_ids = [shape.get_text_config().vocab_size - 3 + row for row in range(3)]
    backend = PREFIX + ("eager" if config.model.attn_implementation == "eager" else "sdpa")
    with torch.device(device):
        causal_lm = AutoModelForCausalLM.from_config(shape, dtype=stored_dtype(config, on_gpu=True), attn_implementation=backend)
        projection = projection_of(causal_lm, config)
        language_model = add_lora(causal_lm, special_ids, config) if config.lora.enabled else causal_lm
        model = assemble(language_model.to(device), special_ids, projection, config)
    if config.training.gradient_checkpointing:
        recompute_layers(model.backbone.decoder)
    return model


def assemble(language_model: Any, special_ids: list[int], projection: nn.Module, config: Config) -> KavaModel:
    """Build a `KavaModel` from its parts, new or from a checkpoint. On "meta" no pass can run, so that nothing is grouped or fused."""
    kava = KavaModel(Backbone(language_model, special_ids), projection, METHODS[config.method], settings_of(config))
    if not config.system.fsdp and not kava.backbone.special_ids.is_meta:
        kava.backbone.share_adapter_inputs()
        fuse_on_cpu(kava)
    return kava


def projection_of(causal_lm: Any, config: Config) -> nn.Module:
    """A newly initialized projection, as the configuration requests it."""
    embedding = causal_lm.get_input_embeddings()
    wanted = METHODS[config.method].uses_projection and config.loss.use_projection
    return build_projection(wanted, embedding.weight.shape[1], embedding)


def fingerprint_of(causal_lm: Any) -> str:
    """Hash of a model's parameters: names, shapes, and a few values of each, rounded so that float32 and bfloat16 copies agree."""
    digest = hashlib.sha256()
    for name, parameter in causal_lm.named_parameters():
        values = parameter.detach().flatten()
        sample = values[:: max(1, len(values) // HASHED_VALUES)][:HASHED_VALUES]
        digest.update(f"{name} {tuple(parameter.shape)} {sample.bfloat16().tolist()}".encode())
    return digest.hexdigest()[:16]


def settings_of(config: Config) -> Settings:
    """The plain values of a training step."""
    loss, rkv = config.loss, config.rkv
    return Settings(
        num_iterations=config.latent.num_iterations,
        weights=loss.weights,
        kv_loss_type=loss.kv_loss_type,
        codi_loss_type=loss.codi_loss_type,
        layerwise_std=loss.layerwise_std,
        kv_rope=loss.kv_rope,
        kv_parts=loss.kv_parts,
        kv_iterations=loss.kv_iterations,
        eviction=rkv.eviction,
        rkv_lambda=rkv.lambda_,
        group_reduction=rkv.group_reduction,
        importance=rkv.importance,
        share=rkv.share,
        eviction_seed=config.training.seed,
    )


def add_token_rows(causal_lm: Any, tokenizer: Any) -> list[int]:
    """Add normally distributed embedding rows for the new tokens, with mean and deviation of the other rows; returns their ids."""
    special_ids: list[int] = tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS)
    embeddings = causal_lm.get_input_embeddings().weight
    old = min(special_ids[0], embeddings.shape[0])
    mean, deviation = embeddings.detach()[:old].float().mean(0), embeddings.detach()[:old].float().std(0)
    make_room(causal_lm, special_ids)
    weight = causal_lm.get_input_embeddings().weight
    with torch.no_grad():
        # A 4-bit base is on the GPU already.
        rows = mean + deviation * torch.randn(len(special_ids), weight.shape[1]).to(mean.device)
        weight[special_ids] = rows.to(weight.dtype)
    return special_ids


def make_room(causal_lm: Any, special_ids: list[int]) -> None:
    """Resize the embeddings if they have no rows for the new tokens.

    The new rows are zeros: no method generates these tokens, and a checkpoint need not store V x E numbers to restore them. If a model
    generates one anyway, its restored copy continues in the same way.
    """
    rows = causal_lm.get_input_embeddings().weight.shape[0]
    if max(special_ids) < rows:
        return
    causal_lm.resize_token_embeddings(max(special_ids) + 1, mean_resizing=False)
    head, embeddings = causal_lm.get_output_embeddings(), causal_lm.get_input_embeddings()
    with torch.no_grad():
        for parameter in (*head.parameters(), *embeddings.parameters()):
            parameter[rows:] = 0


def add_lora(causal_lm: Any, special_ids: list[int], config: Config) -> Any:
    """Wrap a base model with peft's LoRA, by default on the attention projections; of the embeddings, train only the new tokens' rows."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    lora = config.lora
    # Ask the model, not the configuration: `random_model` is never quantized.
    if getattr(causal_lm, "is_loaded_in_4bit", False):
        # transformers' gradient checkpointing drops the cache; ours is `training.gradient_checkpointing`.
        causal_lm = prepare_model_for_kbit_training(causal_lm, use_gradient_checkpointing=False)
    targets = attention_projections(causal_lm) if lora.target_modules == "auto" else lora.target_modules
    embedding = causal_lm.get_input_embeddings()
    names = {module: name for name, module in causal_lm.named_modules()}
    for module, what in ((embedding, "embeddings"), (causal_lm.get_output_embeddings(), "output head")):
        # Rows of the new tokens are trained there, and the loss and the latents use the weights themselves.
        if matched := [target for target in targets if f".{names[module]}".endswith(f".{target}")]:
            raise UserError(f"lora.target_modules names {matched[0]}, the {what} of this model: name maps of its layers alone")
    adapters = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM",
        trainable_token_indices={names[embedding].rpartition(".")[2]: special_ids},
    )  # fmt: skip
    try:
        return get_peft_model(causal_lm, adapters)
    except ValueError as error:
        raise UserError(f"lora.target_modules {targets}: {first_line(error)}") from None


def attention_projections(causal_lm: Any) -> list[str]:
    """Names of the linear layers inside attention modules: q, k, v and o, or their fused forms.

    Each includes the name of its module (`self_attn.q_proj`), because GPT-2's MLP has a `c_proj` too.
    """
    from transformers.pytorch_utils import Conv1D

    names = set()
    for path, module in causal_lm.named_modules():
        # Doge's attention has no `is_causal`, only `num_key_value_groups`.
        if hasattr(module, "layer_idx") and (hasattr(module, "is_causal") or hasattr(module, "num_key_value_groups")):
            parent = path.rpartition(".")[2]
            maps = {name for name, child in module.named_children() if isinstance(child, (nn.Linear, Conv1D))}
            # peft mistakes a `gate_proj` for that of a mixture of experts, which it merges with another layer.
            names |= {f"{parent}.{name}" for name in maps - {"gate_proj"}}
    if not names:
        raise UserError("no attention projections were found in this model; name them in lora.target_modules")
    return sorted(names)
