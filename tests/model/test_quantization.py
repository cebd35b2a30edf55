"""A base model in 4 bits: it trains, is saved and loaded, and is refused in one sentence where it cannot run."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.tiny import MINI, PROMPT, assert_close, gradients, mini_examples, tiny_model
from kava.checkpoint import Trained, load_checkpoint, save_checkpoint
from kava.checkpoint.publish import merge
from kava.config import build_config
from kava.data.collate import build_collator
from kava.data.mini.tokenizer import build_mini_tokenizer
from kava.errors import UserError
from kava.model.build import build_model, load_base
from kava.model.quantization import compile_passes
from kava.model.tokenizer import load_tokenizer

HAS_BNB = find_spec("bitsandbytes") is not None
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def base_directory(place: Path) -> str:
    """A tiny random Llama that speaks the built-in problems' vocabulary, as a checkpoint directory; 4-bit blocks are 64 wide."""
    tokenizer = build_mini_tokenizer(MINI, PROMPT)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=len(tokenizer), **shape)).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return str(place)


@pytest.mark.skipif(HAS_BNB, reason="bitsandbytes is installed")
def test_a_4_bit_base_without_its_package_is_refused() -> None:
    with pytest.raises(
        UserError, match="model.quantization 4bit needs the package bitsandbytes.* pip install 'kava-latent\\[quant\\]', or set it to none"
    ):
        load_base("nowhere", build_config({}, "a test", {"model.quantization": "4bit"}))


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
        # On a GPU the loaded model runs fused kernels, which round otherwise.
        torch.testing.assert_close(again.model(batch)["loss"], trained.model(batch)["loss"], rtol=1e-5 if DEVICE == "cuda" else 0, atol=0)
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


def test_compiling_without_a_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="system.compile needs a C\\+\\+ compiler on a CPU, and no-such-compiler is not on PATH"):
        compile_passes(tiny_model().backbone)
