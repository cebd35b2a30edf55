"""The backbone's own logits and new-token rows equal what transformers' head and peft's wrappers compute, gradients included."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

from helpers.tiny import (
    KINDS,
    LAYERS,
    SPECIAL_IDS,
    VOCABULARY,
    WEIGHTS,
    assert_close,
    gradients,
    make_batch,
    make_examples,
    tiny_model,
    with_lora,
)
from kava.cache.attention import register_backends
from kava.config import Config, build_config
from kava.errors import UserError
from kava.methods import METHODS
from kava.model.backbone import Backbone
from kava.model.build import load_base
from kava.model.kava import KavaModel, Settings
from kava.model.projection import build_projection
from kava.tools.bench.naive import naive_losses

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.1, "pad_token_id": None, "bos_token_id": None,
    "eos_token_id": 1,
}  # fmt: skip


def special_lm(kind: str) -> Any:
    """Architectures that scale or cap logits, or scale embeddings."""
    torch.manual_seed(0)
    register_backends()
    backend = {"attn_implementation": "kava_sdpa"}
    if kind == "gemma2":
        config = Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=1.0, attn_logit_softcapping=0.5, query_pre_attn_scalar=8)
        return Gemma2ForCausalLM._from_config(config, attn_implementation="kava_eager")
    if kind == "granite":
        config = GraniteConfig(**SHAPE, logits_scaling=4.0, embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.5)
        return GraniteForCausalLM._from_config(config, **backend)
    return CohereForCausalLM._from_config(CohereConfig(**SHAPE, logit_scale=0.25), **backend)


def special_model(kind: str) -> KavaModel:
    causal_lm = with_lora(special_lm(kind), SPECIAL_IDS)
    projection = build_projection(True, 32, causal_lm.get_input_embeddings())
    return KavaModel(Backbone(causal_lm, SPECIAL_IDS), projection, METHODS["kava"], Settings(3, WEIGHTS)).eval()


@pytest.mark.parametrize(("kind", "tied"), [("llama", True), ("llama", False), ("qwen2", True), ("gpt2", True)])
def test_logits_equal_peft_s_head(kind: str, tied: bool) -> None:
    model = tiny_model(kind, lora=True, tied=tied)
    hidden = torch.randn(7, 32, requires_grad=True)
    weights = torch.randn(7, VOCABULARY)
    results = []
    for head in (model.backbone.logits, model.backbone.causal_lm.get_output_embeddings()):
        logits = head(hidden)
        hidden.grad = None
        grads = gradients(model, (logits * weights).sum())
        assert hidden.grad is not None
        results.append((logits.detach(), hidden.grad, grads))
    assert_close(results[0][0], results[1][0], 1e-6, "logits")
    assert_close(results[0][1], results[1][1], 1e-6, "gradient of hidden states")
    rows = [name for name, gradient in results[1][2].items() if gradient.any()]
    assert len(rows) == tied
    for name in rows:
        assert_close(results[0][2][name], results[1][2][name], 1e-6, name)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_new_token_rows_equal_peft_s_embedding(kind: str, tied: bool) -> None:
    """Bit for bit, the gradient too."""
    model = tiny_model(kind, lora=True, tied=tied)
    embedding = model.backbone.causal_lm.get_input_embeddings()
    weights = torch.randn(3, 32)
    results = []
    for rows in (model.backbone.special_embeddings(), embedding(model.backbone.special_ids)):
        results.append((rows.detach(), gradients(model, (rows * weights).sum())))
    assert torch.equal(results[0][0], results[1][0])
    for name, gradient in results[1][1].items():
        assert torch.equal(results[0][1][name], gradient), name
        assert bool(gradient.any()) is ("trainable_tokens_delta" in name)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_ordinary_text_is_embedded_as_peft_would(kind: str) -> None:
    model = tiny_model(kind, lora=True)
    ids = torch.arange(60)[None]
    assert torch.equal(model.backbone.embed(ids), model.backbone.causal_lm.get_input_embeddings()(ids))


@pytest.mark.parametrize("kind", ["gemma2", "granite", "cohere"])
@torch.no_grad()
def test_scaled_and_capped_logits(kind: str) -> None:
    """The decoder's hidden states through `logits` are the whole model's logits."""
    model = special_model(kind)
    ids = torch.arange(12, 40)[None]
    expected = model.backbone.causal_lm(input_ids=ids).logits
    hidden = model.backbone.read(ids, torch.ones_like(ids, dtype=torch.bool)).hidden
    assert_close(model.backbone.logits(hidden), expected, 1e-5, kind)
    assert not torch.allclose(expected, hidden @ model.backbone.causal_lm.get_output_embeddings().weight.T, rtol=0.05)


def test_an_architecture_without_sdpa_says_what_to_set(tmp_path: Path) -> None:
    special_lm("gemma2").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="cannot run with model.attn_implementation sdpa; set it to eager"):
        load_base(str(tmp_path), Config())
    eager = build_config({"model": {"attn_implementation": "eager"}}, "a test")
    assert load_base(str(tmp_path), eager).config._attn_implementation == "kava_eager"


@pytest.mark.parametrize("kind", ["gemma2", "granite", "cohere"])
def test_their_steps_equal_full_passes(kind: str) -> None:
    model = special_model(kind)
    batch = make_batch(model, make_examples())
    expected: dict[str, Tensor] = naive_losses(model, batch)
    for name, value in model(batch)["terms"].items():
        assert_close(value, expected[name], what=f"{kind} {name}")


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_go_on_attention_projections_only(kind: str) -> None:
    model = tiny_model(kind, lora=True)
    adapted = {name.rpartition(".lora_A")[0].rpartition("layers.")[2] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted
    assert all("attn" in name for name in adapted), adapted


@torch.no_grad()
def test_masks_and_positions_of_a_left_padded_prefix() -> None:
    model = tiny_model()
    ids = torch.tensor([[0, 0, 11, 12], [13, 14, 15, 16]])
    mask = torch.tensor([[False, False, True, True], [True] * 4])
    prefix = model.backbone.read(ids, mask).prefix
    assert prefix.next_position.tolist() == [2, 4]
    extended = model.backbone.extend(
        prefix, model.backbone.embed(ids[:, 1:]), torch.tensor([[True, True, False], [True, False, False]])
    ).prefix
    assert extended.next_position.tolist() == [4, 5]
    assert extended.mask.tolist() == [[False, False, True, True, True, True, False], [True] * 5 + [False, False]]
    shorter = prefix.shortened(2, prefix.last_hidden)
    assert (shorter.length, shorter.next_position.tolist()) == (2, [0, 2])


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
@pytest.mark.skipif(not torch.cuda.is_available() and shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_passes_give_the_same_losses_gradients_and_answers() -> None:
    """Adapters included, in one graph each: a pass that falls apart compiles for minutes and gains nothing."""
    path = os.pathsep.join(str(Path(__file__).parents[2] / folder) for folder in ("src", "tests"))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
