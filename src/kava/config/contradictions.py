"""Settings that are incompatible with each other or with the method, each with the reason and the fix."""

from collections.abc import Iterator
from typing import Any

from kava.methods import METHODS, WINDOW


def contradictions(config: Any) -> Iterator[str]:
    """Yield one message for each contradiction in a configuration whose single values are valid."""
    lora, model, system, training = config.lora, config.model, config.system, config.training
    method = METHODS[config.method]
    if method.step_decoder and model.attn_implementation == "flash_attention_2":
        yield (
            f"method {config.method} decodes all steps in one pass with a custom attention mask, which flash_attention_2 does not support: "
            "set model.attn_implementation to sdpa"
        )
    if method.kv and config.rkv.eviction == "rkv_original" and 0 < config.latent.num_tokens <= WINDOW:
        yield (
            f"rkv.eviction rkv_original always keeps the last {WINDOW} entries of a trace: set latent.num_tokens above {WINDOW}, "
            "or rkv.eviction to rkv"
        )
    if lora.enabled and lora.r == 0:
        yield "lora.r is 0: set lora.enabled to false for full fine-tuning, or lora.r to at least 1"
    if model.dtype not in ("auto", "float32") and system.mixed_precision == "no":
        yield f"model.dtype {model.dtype} needs system.mixed_precision bf16 or fp16: the trained parts are float32"
    if model.dtype == "float16" and not lora.enabled:
        yield "model.dtype float16 cannot be trained: set it to float32 or bfloat16, or lora.enabled to true"
    if model.quantization == "4bit" and not lora.enabled:
        yield "model.quantization 4bit freezes the base model: set lora.enabled to true, or model.quantization to none"
    if system.fsdp and model.quantization == "4bit":
        yield "system.fsdp cannot split 4-bit weights: set model.quantization to none, or system.fsdp to false"
    if system.fsdp and system.mixed_precision == "fp16":
        yield "system.fsdp has no loss scaling, which fp16 needs: set system.mixed_precision to bf16 or no"
    if system.fsdp and system.compile:
        yield "system.compile does not support sharded weights: set it to false, or system.fsdp to false"
    if system.compile and training.gradient_checkpointing:
        yield "system.compile and training.gradient_checkpointing exclude each other: set one of them to false"
    if config.dataset.mini.min_steps > config.dataset.mini.max_steps:
        yield "dataset.mini.min_steps is larger than dataset.mini.max_steps"
