"""Tiny random models of any architecture, and random examples for them: small enough for loops, large enough to be wrong."""

import random
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.utils import is_flash_attn_2_available

from kava.cache.attention import PREFIX, register_backends
from kava.config import Config, LossConfig, MiniDataConfig, build_config
from kava.data.collate import Batch, Collator
from kava.data.mini.problems import generate
from kava.data.mini.tokenizer import build_mini_tokenizer
from kava.data.sequences import SPECIAL_TOKENS, EncodedExample, SequenceBuilder
from kava.methods import METHODS
from kava.model.backbone import Backbone
from kava.model.build import add_lora
from kava.model.kava import KavaModel, Settings
from kava.model.projection import build_projection

VOCABULARY, HIDDEN, LAYERS = 64, 32, 3
SPECIAL_IDS = [61, 62, 63]
PROMPT_IDS = [5, 6, 7, 8]
EOS = 1
KINDS = ("llama", "qwen2", "gpt2")
# Those of the matrix in test_architectures.py: names as transformers registers them.
ARCHITECTURES = (
    "llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt2", "gpt_neox", "opt", "smollm3", "mixtral",
    "gpt_oss", "llama4_text", "doge",
)  # fmt: skip
# transformers refuses SDPA for these: capped or sunk attention.
EAGER_ONLY = ("gemma2", "gpt_oss")
# flash-attn computes in half precision on a GPU only: its own tests are marked `gpu`.
BACKENDS = ("sdpa", "eager")
HAS_FLASH = is_flash_attn_2_available()
WEIGHTS = LossConfig().weights

_ROPE = {
    "llama3_rope": {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 32},
    "longrope": {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0],
                 "original_max_position_embeddings": 32},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64},
}  # fmt: skip

# What an architecture needs besides the common shape: small heads, no dropout, a mixture of its kinds of layers.
_LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
_OWN: dict[str, dict[str, Any]] = {
    "dynamic": {"max_position_embeddings": 32},
    "phi": {"resid_pdrop": 0.0},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0,
               "layer_types": _LAYER_TYPES},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "layer_types": _LAYER_TYPES},
    "bert": {"is_decoder": True, "pad_token_id": 0},
    "hyperclovax": {"logits_scaling": 2.0},
    "opt": {"ffn_dim": 2 * HIDDEN, "word_embed_proj_dim": HIDDEN, "dropout": 0.0},
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 256, "layer_types": _LAYER_TYPES},
    "jetmoe": {"kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "llama4_text": {"head_dim": 8, "intermediate_size_mlp": 2 * HIDDEN, "num_local_experts": 4, "attention_chunk_size": 256},
    "afmoe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_dense_layers": 1,
              "sliding_window": 256},
    "deepseek_v3": {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
                    "v_head_dim": 8, "first_k_dense_replace": 1, "n_routed_experts": 4, "n_group": 2, "topk_group": 1,
                    "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}  # fmt: skip
_OWN["deepseek_v2"] = _OWN["deepseek_v3"]


def tiny_lm(
    kind: str = "llama", attn: str = "sdpa", *, vocabulary: int = VOCABULARY, tied: bool = False, spread: float = 0.1, layers: int = LAYERS
) -> Any:
    """A random causal language model with grouped queries (but GPT-2); `spread` is its initial standard deviation."""
    register_backends()
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": spread,
        "tie_word_embeddings": tied, "bos_token_id": None, "eos_token_id": EOS, "pad_token_id": None,
    }  # fmt: skip
    backend = {"attn_implementation": PREFIX + attn}
    if kind == "gpt2":
        names = {"n_embd": HIDDEN, "n_layer": layers, "n_head": 4, "n_positions": 256, "resid_pdrop": 0, "attn_pdrop": 0, "embd_pdrop": 0}
        kept = {key: shape[key] for key in ("vocab_size", "initializer_range", "tie_word_embeddings", "bos_token_id", "eos_token_id")}
        return GPT2LMHeadModel._from_config(GPT2Config(**names, **kept), **backend)
    rope = {"rope_parameters": _ROPE[kind]} if kind in _ROPE else {}
    config = AutoConfig.for_model("llama" if kind in _ROPE else kind, **shape | rope | _OWN.get(kind, {}))
    return AutoModelForCausalLM.from_config(config, **backend)


def lora_config(**overrides: Any) -> Config:
    """Small adapters without dropout."""
    return build_config({}, "a test", {"lora.r": 4, "lora.alpha": 8, "lora.dropout": 0.0, "system.mixed_precision": "no", **overrides})


def with_lora(causal_lm: Any, special_ids: list[int]) -> Any:
    """Adapters and new-token rows as the package adds them; lora_B is random, so that lora_A has a gradient."""
    wrapped = add_lora(causal_lm, special_ids, lora_config())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return wrapped


def tiny_model(
    kind: str = "llama", attn: str = "sdpa", method: str = "kava", *, lora: bool = False, tied: bool = False,
    projection: bool = True, num_iterations: int = 3, spread: float = 0.1, **settings: Any,
) -> KavaModel:  # fmt: skip
    """A model ready for a step, in eval mode; the same arguments give the same weights."""
    causal_lm = tiny_lm(kind, attn, tied=tied, spread=spread)
    torch.manual_seed(1)
    project = build_projection(projection and METHODS[method].uses_projection, HIDDEN, causal_lm.get_input_embeddings())
    wrapped = with_lora(causal_lm, SPECIAL_IDS) if lora else causal_lm
    backbone = Backbone(wrapped, SPECIAL_IDS)
    backbone.share_adapter_inputs()
    return KavaModel(backbone, project, METHODS[method], Settings(num_iterations, WEIGHTS, **settings)).eval()


def set_dropout(model: KavaModel, probability: float) -> None:
    """Give every adapter this dropout."""
    for group in model.backbone.adapters.groups:
        for member in group.members:
            member.module.lora_dropout[member.adapter] = nn.Dropout(probability) if probability else nn.Identity()


def make_examples(count: int = 5, *, steps: tuple[int, ...] = (1, 2, 3, 4), seed: int = 0) -> list[EncodedExample]:
    """Random ids: questions of 4 to 13 tokens, steps of 2 to 5, answers of 2 to 4 after the prompt; example i has steps[i % n] steps."""
    rng = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(10, 60) for _ in range(rng.randint(low, high))]

    return [
        EncodedExample(ids(4, 13), [ids(2, 5) for _ in range(steps[i % len(steps)])], [*PROMPT_IDS, *ids(1, 3), EOS], rng.randrange(2**31))
        for i in range(count)
    ]


def total_length(example: EncodedExample) -> int:
    """Tokens of an example's question, steps and answer."""
    return len(example.question) + sum(map(len, example.steps)) + len(example.answer)


def make_batch(model: KavaModel, examples: list[EncodedExample], num_latents: int = 4, stage: int = 0, **options: Any) -> Batch:
    """Collate for a model's method; `stage` is the curriculum's."""
    collator = Collator(model.method, 0, len(PROMPT_IDS), num_latents=num_latents, tokens_per_stage=3, **options)
    collator.stage = stage
    return collator.collate(examples)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Gradient of every trainable parameter, zeros where none came."""
    model.zero_grad()
    loss.backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def relative(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected magnitude."""
    if torch.equal(actual, expected):
        return 0.0
    return float((actual - expected).detach().abs().max() / expected.detach().abs().max().clamp(min=1e-30))


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5, what: str = "") -> None:
    """Fail with numbers where two tensors differ, relative to the largest expected value."""
    assert actual.shape == expected.shape, f"{what}: {tuple(actual.shape)} is not {tuple(expected.shape)}"
    assert relative(actual, expected) <= tolerance, f"{what}: off by {relative(actual, expected):.2e}, allowed {tolerance:.0e}"


MINI = MiniDataConfig(modulus=5, max_steps=3, num_train=200, num_eval=40)
PROMPT = "The answer is:"


@cache
def mini_tokenizer() -> Any:
    """The tokenizer of the built-in problems, with the three new tokens."""
    tokenizer = build_mini_tokenizer(MINI, PROMPT)
    tokenizer.add_tokens(SPECIAL_TOKENS, special_tokens=True)
    return tokenizer


def mini_builder(ends_with: str | None = None) -> SequenceBuilder:
    """Sequences of the built-in problems; `ends_with` names another EOS token (a new one is no row of the model: no answer ends)."""
    if ends_with is None:
        return SequenceBuilder(mini_tokenizer(), PROMPT)
    backend = mini_tokenizer().backend_tokenizer
    return SequenceBuilder(type(mini_tokenizer())(tokenizer_object=backend, pad_token="<pad>", eos_token=ends_with), PROMPT)


@cache
def mini_examples(count: int = 8) -> tuple[Any, ...]:
    """Built-in problems of 1 to 3 steps."""
    return tuple(generate("train", MINI, limit=count))


def mini_model(
    kind: str = "llama", method: str = "kava", *, attn: str = "sdpa", lora: bool = False, num_iterations: int = 3, spread: float = 0.1,
    layers: int = LAYERS,
) -> KavaModel:  # fmt: skip
    """A tiny random model that speaks the built-in problems' vocabulary."""
    tokenizer = mini_tokenizer()
    special_ids = tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS)
    causal_lm = tiny_lm(kind, attn, vocabulary=len(tokenizer), spread=spread, layers=layers)
    torch.manual_seed(1)
    projection = build_projection(METHODS[method].uses_projection, HIDDEN, causal_lm.get_input_embeddings())
    wrapped = with_lora(causal_lm, special_ids) if lora else causal_lm
    backbone = Backbone(wrapped, special_ids)
    backbone.share_adapter_inputs()
    return KavaModel(backbone, projection, METHODS[method], Settings(num_iterations, WEIGHTS)).eval()


def changed(model: KavaModel, **settings: Any) -> KavaModel:
    """The same weights with other settings."""
    return KavaModel(model.backbone, model.projection, model.method, replace(model.settings, **settings)).eval()
