"""What a GPU run may switch on: each setting is right where it can run, and refused in one sentence where it cannot."""

import math
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from helpers.checks import QUESTIONS
from helpers.tiny import (
    HAS_FLASH,
    KINDS,
    MINI,
    PROMPT,
    assert_close,
    gradients,
    make_batch,
    make_examples,
    mini_builder,
    mini_examples,
    mini_model,
    relative,
    tiny_model,
)
from kava.cache.attention import PREFIX, ImportanceRecorder, recording, register_backends
from kava.checkpoint import Trained, load_checkpoint, save_checkpoint
from kava.checkpoint.publish import merge
from kava.config import build_config
from kava.data.collate import build_collator
from kava.data.mini.tokenizer import build_mini_tokenizer
from kava.errors import UserError
from kava.generate import Reasoner
from kava.losses.fused import check_fused_available
from kava.model.build import build_model, load_base, stored_dtype
from kava.model.tokenizer import load_tokenizer
from kava.train.optimizer import check_optimizer

HAS_BNB, HAS_LIGER = find_spec("bitsandbytes") is not None, find_spec("liger_kernel") is not None
RUNS_LIGER = HAS_LIGER and (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1")
ROOT = Path(__file__).parents[2]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def base_directory(place: Path) -> str:
    """A tiny random Llama that speaks the built-in problems' vocabulary, as a checkpoint directory; 4-bit blocks are 64 wide."""
    tokenizer = build_mini_tokenizer(MINI, PROMPT)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=len(tokenizer), **shape)).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return str(place)


def test_a_frozen_base_is_stored_in_what_a_gpu_computes_in_unless_told_otherwise() -> None:
    def stored(on_gpu: bool, **overrides: Any) -> torch.dtype:
        return stored_dtype(build_config({}, "a test", overrides), on_gpu)

    assert stored(on_gpu=True) == torch.bfloat16
    assert stored(on_gpu=False) == torch.float32
    for other in (
        {"lora.enabled": False},
        {"system.mixed_precision": "no"},
        {"system.mixed_precision": "fp16"},
        {"model.dtype": "float32"},
    ):
        assert stored(on_gpu=True, **other) == torch.float32
    assert stored(on_gpu=False, **{"model.dtype": "bfloat16"}) == torch.bfloat16
    # A configuration from before there was a choice, and what it chose on a CPU, are the same run.
    assert build_config({}, "a test", {"model.dtype": "float32"}).fingerprint() == build_config({}, "a test").fingerprint()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"model.quantization": "4bit", "lora.enabled": False}, "model.quantization 4bit freezes the base model"),
        ({"model.dtype": "float16", "system.mixed_precision": "fp16", "lora.enabled": False}, "model.dtype float16 cannot be trained"),
        ({"model.quantization": "4bit", "system.fsdp": True}, "system.fsdp cannot split 4-bit weights"),
        ({"system.mixed_precision": "fp16", "system.fsdp": True}, "system.fsdp has no loss scaling"),
        ({"system.compile": True, "system.fsdp": True}, "system.compile does not support sharded weights"),
        ({"system.compile": True, "training.gradient_checkpointing": True}, "system.compile and training.gradient_checkpointing exclude"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(overrides: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build_config({}, "a test", overrides)


@pytest.mark.skipif(HAS_BNB, reason="bitsandbytes is installed")
@pytest.mark.parametrize("optimizer", ["adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"])
def test_an_8_bit_optimizer_without_its_package_is_refused(optimizer: str) -> None:
    install = r"pip install 'kava-latent\[quant\]'"
    sentence = f"training.optimizer {optimizer} needs the package bitsandbytes, which is not installed: {install}, or set"
    with pytest.raises(UserError, match=sentence):
        check_optimizer(optimizer)


@pytest.mark.skipif(HAS_BNB, reason="bitsandbytes is installed")
def test_a_4_bit_base_without_its_package_is_refused() -> None:
    with pytest.raises(
        UserError, match="model.quantization 4bit needs the package bitsandbytes.* pip install 'kava-latent\\[quant\\]', or set it to none"
    ):
        load_base("nowhere", build_config({}, "a test", {"model.quantization": "4bit"}))


@pytest.mark.skipif(HAS_FLASH, reason="flash-attn is installed")
def test_flash_attention_without_its_package_is_refused() -> None:
    with pytest.raises(
        UserError, match="flash_attention_2 needs the package flash-attn.* pip install 'kava-latent\\[flash\\]', or set it to sdpa"
    ):
        load_base("nowhere", build_config({}, "a test", {"model.attn_implementation": "flash_attention_2"}))


@pytest.mark.skipif(RUNS_LIGER, reason="liger-kernel can run here")
def test_fused_cross_entropy_without_its_package_or_a_gpu_is_refused() -> None:
    reason = (
        "needs a GPU, and this runs on the CPU" if HAS_LIGER else "needs the package liger-kernel.* pip install 'kava-latent\\[liger\\]'"
    )
    with pytest.raises(UserError, match=f"system.fused_cross_entropy {reason}"):
        check_fused_available("cpu")


def test_importance_is_computed_in_float32_under_autocast() -> None:
    """From half-precision queries and keys, to what float64 makes of the same numbers; bfloat16 would be off by 1e-3 and more."""
    register_backends()
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 12, 8, generator=generator).bfloat16() for heads in (4, 2, 2))
    rows, mask = torch.tensor([[9, 10, 11], [9, 10, 11]]), torch.tensor([[True, True, True], [True, True, False]])
    recorder = ImportanceRecorder(rows, mask, 2, 9, "mean")
    layer = torch.nn.Module()
    layer.layer_idx, layer.num_key_value_groups, layer.is_causal = 0, 2, True
    with torch.autocast("cpu", dtype=torch.bfloat16), recording(recorder):
        ALL_ATTENTION_FUNCTIONS[f"{PREFIX}sdpa"](layer, query, key, value, None, scaling=8**-0.5)
    scores = query.double().view(2, 2, 2, 12, 8)[:, :, :, 9:] @ key.double()[:, :, None].mT / math.sqrt(8)
    visible = torch.arange(12) <= rows[0][:, None]
    probabilities = scores.masked_fill(~visible, -torch.inf).softmax(-1)[..., 2:9]
    weight = mask / mask.sum(-1, keepdim=True)
    expected = torch.einsum("bhgac,ba->bhgc", probabilities, weight.double()).mean(2)
    assert recorder.layers[0].dtype == torch.float32
    assert_close(recorder.layers[0].double(), expected, 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_float32_under_bf16_autocast(kind: str) -> None:
    model = tiny_model(kind, lora=True, eviction="crop")
    batch = make_batch(model, make_examples())
    exact = model.losses(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model.losses(batch)
    for name, value in rounded.items():
        assert value.dtype == torch.float32, name
        # Computed in bfloat16, so not the same; the losses on top of it are float32, so still close.
        assert 0 < relative(value, exact[name]) < 0.03, name


def test_a_base_stored_in_bfloat16_trains_under_autocast_and_answers_without() -> None:
    exact, stored = mini_model(lora=True), mini_model(lora=True)
    for parameter in stored.parameters():
        parameter.data = parameter.data if parameter.requires_grad else parameter.data.bfloat16()
    batch = make_batch(exact, make_examples())
    expected = exact.losses(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = stored.losses(batch)
    for name in ("student_ce", "teacher_ce", "codi"):  # bfloat16 may keep other entries of the trace
        assert terms[name].dtype == torch.float32, name
        assert relative(terms[name], expected[name]) < 0.05, name
    answers = Reasoner(stored, mini_builder(), 4, 2).generate(QUESTIONS, max_new_tokens=4)
    assert [answer.forward_passes for answer in answers] == [1 + 2 + 1 + 3] * len(QUESTIONS)


# In a process without the tests' shape checks, which torch cannot trace; one compiler process, because other workers have the other cores.
COMPILED = """
import torch
from torch._dynamo.utils import counters

from helpers.checks import QUESTIONS
from helpers.tiny import assert_close, gradients, make_batch, make_examples, mini_builder, mini_model
from kava.generate import Reasoner

torch._inductor.config.compile_threads = 1
plain, compiled = mini_model(lora=True, layers=1), mini_model(lora=True, layers=1)
compiled.backbone.compile_passes()
batch = make_batch(plain, make_examples())
losses = [model(batch)["loss"] for model in (plain, compiled)]
assert_close(losses[1], losses[0], 1e-5)
expected, actual = gradients(plain, losses[0].sum()), gradients(compiled, losses[1].sum())
for name, gradient in expected.items():
    assert_close(actual[name], gradient, 1e-4, name)
answers = [Reasoner(model, mini_builder(), 4, 2).generate(QUESTIONS, max_new_tokens=6) for model in (plain, compiled)]
assert answers[0] == answers[1]
assert not counters["graph_break"], counters["graph_break"]
"""


@pytest.mark.slow
@pytest.mark.skipif(DEVICE == "cpu" and shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_passes_give_the_same_losses_gradients_and_answers() -> None:
    """Adapters included, in one graph each: a pass that falls apart compiles for minutes and gains nothing."""
    path = os.pathsep.join(str(ROOT / folder) for folder in ("src", "tests"))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.skipif(not RUNS_LIGER, reason="needs liger-kernel, and a GPU or TRITON_INTERPRET=1")
@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("llama", True), ("gemma2", True)])
def test_fused_cross_entropy_gives_the_same_losses_and_gradients(kind: str, tied: bool) -> None:
    if kind == "gemma2" and DEVICE == "cpu":
        pytest.skip("Triton's interpreter has no tanh for softcapped logits")
    attn = "eager" if kind == "gemma2" else "sdpa"
    plain, fused = (tiny_model(kind, attn, lora=True, tied=tied).to(DEVICE) for _ in range(2))
    fused.backbone.fused = True
    batch = make_batch(plain, make_examples()).to(DEVICE)
    losses = [model(batch)["loss"] for model in (plain, fused)]
    assert_close(losses[1], losses[0], 1e-5)
    expected, actual = gradients(plain, losses[0].sum()), gradients(fused, losses[1].sum())
    for name, gradient in expected.items():
        assert_close(actual[name], gradient, 1e-4, name)


@pytest.mark.skipif(not HAS_BNB, reason="bitsandbytes is not installed")
def test_a_4_bit_base_trains_its_adapter_and_comes_back_from_a_checkpoint(tmp_path: Path) -> None:
    import bitsandbytes

    base = base_directory(tmp_path / "base")
    overrides = {"model.name": base, "model.quantization": "4bit", "lora.r": 4, "latent.num_tokens": 4, "system.mixed_precision": "no"}
    config = build_config({}, "a test", overrides)
    torch.manual_seed(0)
    tokenizer = load_tokenizer(base)
    trained = Trained(build_model(base, tokenizer, config).to(DEVICE), tokenizer, config, base)
    linears = [module for module in trained.model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert len(linears) == 7 * 2
    assert all(linear.weight.dtype == torch.uint8 and linear.weight.quant_type == "nf4" for linear in linears)
    examples = trained.builder.encode_all(list(mini_examples(4)))
    batch = build_collator(config, trained.builder).collate(examples).to(DEVICE)
    optimizer = bitsandbytes.optim.AdamW8bit(
        [parameter for parameter in trained.model.parameters() if parameter.requires_grad], lr=1e-2, min_8bit_size=1
    )
    losses = []
    for _ in range(4):
        loss = trained.model.eval()(batch)["loss"].mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.98 * losses[0]
    save_checkpoint(tmp_path / "checkpoint", trained)
    again = load_checkpoint(tmp_path / "checkpoint", device=DEVICE)
    with torch.no_grad():
        assert torch.equal(again.model(batch)["loss"], trained.model(batch)["loss"])
    with pytest.raises(UserError, match="was trained with model.quantization '4bit', not 'none'"):
        load_checkpoint(tmp_path / "checkpoint", {"model.quantization": "none"})
    with pytest.raises(UserError, match="has a 4-bit base model, which merging would round again"):
        merge(tmp_path / "checkpoint", tmp_path / "merged")
    # What a base of the rounded weights, in float32, gives.
    loss = trained.model(batch)["loss"]
    actual = gradients(trained.model, loss.sum())
    for name, linear in [item for item in trained.model.named_modules() if isinstance(item[1], bitsandbytes.nn.Linear4bit)]:
        plain = torch.nn.Linear(linear.in_features, linear.out_features, bias=False, device=DEVICE)
        plain.weight.data = bitsandbytes.functional.dequantize_4bit(linear.weight.data, linear.weight.quant_state)
        trained.model.set_submodule(name, plain.requires_grad_(False))
    expected = trained.model(batch)["loss"]
    assert_close(loss, expected, 1e-5)
    for name, gradient in gradients(trained.model, expected.sum()).items():
        assert_close(actual[name], gradient, 1e-4, name)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_on_a_gpu_keeps_losses_in_float32(precision: str) -> None:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    model = tiny_model(lora=True, eviction="crop").to("cuda")
    batch = make_batch(model, make_examples()).to("cuda")
    exact = model.losses(batch)
    with torch.autocast("cuda", dtype=dtype):
        rounded = model.losses(batch)
    for name, value in rounded.items():
        assert value.dtype == torch.float32, name
        assert relative(value, exact[name]) < 0.03, name


@pytest.mark.gpu
def test_the_losses_of_a_gpu_are_those_of_a_cpu() -> None:
    model = tiny_model(lora=True, eviction="crop")
    batch = make_batch(model, make_examples())
    expected = model.losses(batch)
    actual = model.to("cuda").losses(batch.to("cuda"))
    for name, value in expected.items():
        assert_close(actual[name].cpu(), value, 1e-4, name)
