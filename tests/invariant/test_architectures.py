"""Any causal language model of transformers: one matrix of properties over tiny random models, and refusals with a reason.

The properties themselves are in `checks.py`, and their finer cases in the tests of single parts.
"""

import unittest.mock
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.checks import (
    check_backends,
    check_batching,
    check_cached_decoding,
    check_importance,
    check_saving,
    compare,
    make_trained,
    recorded,
)
from helpers.tiny import (
    ARCHITECTURES,
    BACKENDS,
    EAGER_ONLY,
    HIDDEN,
    KINDS,
    LAYERS,
    SPECIAL_IDS,
    VOCABULARY,
    lora_config,
    make_batch,
    make_examples,
    mini_builder,
    mini_model,
    tiny_lm,
    tiny_model,
)
from kava.cache import attention
from kava.errors import UserError
from kava.generate import Reasoner
from kava.model import head
from kava.model.backbone import Backbone
from kava.model.build import build_model, load_base
from kava.model.suitability import check_architecture, check_behaviour
from kava.model.tokenizer import load_tokenizer
from kava.runtime.device import as_on_gpu
from kava.train.prepare import longest_entries

# The first three have finer cases of the same properties in the tests of single parts.
OTHERS = [kind for kind in ARCHITECTURES if kind not in KINDS]


def backend_of(kind: str) -> str:
    return "eager" if kind in EAGER_ONLY else "sdpa"


@pytest.mark.parametrize("kind", OTHERS)
def test_losses_and_gradients_equal_separate_full_passes(kind: str) -> None:
    model = tiny_model(kind, backend_of(kind), lora=True)
    compare(model, make_batch(model, make_examples()))


@pytest.mark.parametrize("kind", [kind for kind in OTHERS if kind not in EAGER_ONLY])
def test_sdpa_equals_eager_attention(kind: str) -> None:
    check_backends(kind, "kava")


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind not in EAGER_ONLY])
def test_sdpa_itself_holds_to_the_same(kind: str) -> None:
    """Torch's own attention, which a CPU's short sequences in float32 never reach: a kernel of ours takes them."""
    kernel = unittest.mock.patch.object(attention, "attend_short", side_effect=AssertionError("the kernel is off"))
    # What is compared are logits, which slices do not have.
    slices = unittest.mock.patch.object(head, "runs_as_on_gpu", return_value=False)
    with as_on_gpu(), kernel, slices:
        check_backends(kind, "kava")
        check_batching(tiny_model(kind, lora=True))
        with torch.no_grad():
            check_importance(kind, "sdpa", "max")
            check_cached_decoding(kind, "sdpa", "kava")


@pytest.mark.parametrize("kind", OTHERS)
def test_a_batch_gives_each_example_what_it_gets_alone(kind: str) -> None:
    """Losses, latents, logits, and the entries that eviction keeps."""
    check_batching(tiny_model(kind, backend_of(kind), lora=True))


@pytest.mark.parametrize("kind", OTHERS)
@torch.no_grad()
def test_eviction_sees_the_attention_that_the_model_pays(kind: str) -> None:
    check_importance(kind, backend_of(kind), "max")


@pytest.mark.parametrize("kind", OTHERS)
@torch.no_grad()
def test_cached_generation_equals_reading_everything_anew(kind: str) -> None:
    check_cached_decoding(kind, backend_of(kind), "kava")


@pytest.mark.parametrize("kind", ARCHITECTURES)
@torch.no_grad()
def test_latents_enter_at_the_size_of_tokens(kind: str) -> None:
    """What the first layer is given: Gemma's embedding multiplies by sqrt(E), so its latents are as much larger from the start."""
    model = tiny_model(kind, backend_of(kind))
    tokens = model.backbone.embed(torch.arange(VOCABULARY)[None])
    latents = model.projection(torch.randn(1, 50, HIDDEN))
    assert float(latents.square().mean().sqrt() / tokens.square().mean().sqrt()) == pytest.approx(1.0, rel=0.05)


# Those whose output head is the embedding matrix, as published.
TIED = ("gpt2", "opt", "gemma", "gemma2", "gemma3_text")


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_saved_and_loaded_bit_for_bit(tmp_path: Path, kind: str) -> None:
    """Built from a directory as a run builds it, probes of `check_behaviour` included."""
    check_saving(tmp_path, make_trained(tmp_path, kind, attn=backend_of(kind), tied=kind in TIED))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_keys_before_rotation_or_a_refusal(kind: str) -> None:
    """Where `kv_rope: pre` is accepted it is right (the probe compares positions); no layer of mixed positions slips through."""
    backbone = tiny_model(kind, backend_of(kind)).backbone
    if kind in ("gemma3_text", "smollm3", "gpt_oss", "llama4_text"):
        with pytest.raises(UserError, match="loss.kv_rope is pre, .* set it to post"):
            check_behaviour(kind, backbone, unrotates=True)
    else:
        check_behaviour(kind, backbone, unrotates=True)


REFUSED = {
    "mamba": "recurrent state", "mamba2": "recurrent state", "rwkv": "recurrent state", "jamba": "recurrent state",
    "falcon_h1": "recurrent state", "recurrent_gemma": "recurrent state", "xlstm": "recurrent state", "minimax": "not every layer keeps",
    "gemma3n_text": "not every layer keeps", "gptj": "attention interface", "bloom": "attention interface", "mpt": "attention interface",
    "t5": "no causal language model",
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_work_is_refused_before_its_weights_are_loaded(kind: str, tmp_path: Path) -> None:
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"{kind}.* cannot reason in latents: .*{REFUSED[kind]}") as caught:
        load_base(str(tmp_path), lora_config())
    assert "\n" not in str(caught.value)


def test_convolutions_between_the_layers_are_refused() -> None:
    config = AutoConfig.for_model("lfm2", layer_types=["conv", "full_attention"], num_hidden_layers=2)
    with pytest.raises(UserError, match=r"not every layer keeps a key and a value for every token .LinearAttentionLayer"):
        check_architecture("lfm2", config)


@pytest.mark.parametrize("kind", ["deepseek_v2", "deepseek_v3"])
def test_a_cache_of_compressed_latents_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match="multi-head latent attention"):
        check_behaviour("a model", tiny_model(kind).backbone)


def narrow_embeddings() -> Backbone:
    """OPT in the shape of opt-350m."""
    config = tiny_lm("opt").config
    config.word_embed_proj_dim = HIDDEN // 2
    return Backbone(AutoModelForCausalLM.from_config(config), SPECIAL_IDS)


def test_embeddings_of_another_width_are_refused() -> None:
    with pytest.raises(UserError, match=rf"differ in width \({HIDDEN // 2} and {HIDDEN}\), but a latent token is a hidden state"):
        check_behaviour("a model", narrow_embeddings())


def test_keys_that_are_repeated_before_attention_are_refused() -> None:
    """JetMoE: its order of heads is not that of grouped queries."""
    for attn in BACKENDS:
        with pytest.raises(UserError, match="its attention uses 4 heads of keys but its cache keeps 2"):
            check_behaviour("a model", Backbone(tiny_lm("jetmoe", attn), SPECIAL_IDS))


def test_what_the_check_refuses_is_refused_before_anything_else_runs_the_model(tmp_path: Path) -> None:
    trained = make_trained(tmp_path)
    tiny_lm("jetmoe", vocabulary=len(trained.tokenizer)).save_pretrained(tmp_path / "jetmoe")
    with pytest.raises(UserError, match="cannot reason in latents: its attention uses"):
        build_model(str(tmp_path / "jetmoe"), trained.tokenizer, lora_config())


def test_a_gate_in_the_attention_of_a_mixture() -> None:
    """AFMoE: peft would merge its attention's gate with a map of the experts. Its norms on both sides of a layer magnify rounding."""
    model = tiny_model("afmoe", lora=True)
    compare(model, make_batch(model, make_examples()), tolerance=1e-4)
    check_behaviour("a model", model.backbone, unrotates=True)
    with torch.no_grad():
        check_importance("afmoe", "sdpa", "max")
        check_cached_decoding("afmoe", "sdpa", "kava")
    # It views the output of grouped attention as rows, which must follow each other.
    with torch.autocast("cpu", torch.bfloat16):
        assert model(make_batch(model, make_examples()))["loss"].isfinite().all()


@pytest.mark.parametrize("kind", ["bert", "hyperclovax"])
def test_logits_that_are_not_those_of_the_output_head_are_refused(kind: str) -> None:
    """BERT has a layer before its head; HyperCLOVAX multiplies by what Granite divides by."""
    with pytest.raises(UserError, match="its logits differ by .* through its output head"):
        check_behaviour("a model", Backbone(tiny_lm(kind), SPECIAL_IDS))


def test_a_model_without_a_cache_is_refused_by_what_it_does(tmp_path: Path) -> None:
    """An encoder passes for a causal language model in transformers' list."""
    trained = make_trained(tmp_path)
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    config = AutoConfig.for_model("bert", vocab_size=len(trained.tokenizer), **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="cannot reason in latents: a pass that keeps a KV cache fails"):
        build_model(str(tmp_path / "bert"), trained.tokenizer, lora_config(**{"lora.target_modules": ["query", "value"]}))


def test_the_probe_leaves_no_trace(tmp_path: Path) -> None:
    trained = make_trained(tmp_path)
    tokenizer = load_tokenizer(trained.base)
    torch.manual_seed(5)
    model = build_model(trained.base, tokenizer, trained.config)
    assert model.training
    assert model.backbone.forward_passes == 0
    after = torch.randn(1)
    torch.manual_seed(5)
    model = build_model(trained.base, tokenizer, trained.config)
    assert torch.equal(torch.randn(1), after)


def windowed(kind: str, entries: int) -> Any:
    """A tiny model that reaches so many entries: by a sliding window, or by its positions."""
    model = tiny_model(kind, backend_of(kind))
    model.backbone._limit = (entries, model.backbone._limit[1])  # type: ignore[index]
    return model


@pytest.mark.parametrize(("kind", "limit", "what"), [("mistral", 4096, "sliding window"), ("gpt_oss", 256, "sliding window"),
                                                     ("gpt2", 256, "learned positions"), ("opt", 256, "learned positions")])  # fmt: skip
def test_the_reach_of_a_model(kind: str, limit: int, what: str) -> None:
    backbone = tiny_model(kind, backend_of(kind)).backbone
    backbone.require(limit)
    with pytest.raises(UserError, match=rf"a sequence of {limit + 1} entries .*{limit}, by .*{what}"):
        backbone.require(limit + 1)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "phi", "gpt_neox"])
def test_rotary_positions_go_on(kind: str) -> None:
    tiny_model(kind).backbone.require(10**9)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_rotary_positions_that_change_end(kind: str) -> None:
    """Beyond the original length all positions of a pass change, those of cached keys excepted: with and without cache differ."""
    model = tiny_model(kind)
    model.backbone.require(32)
    with pytest.raises(UserError, match=rf"a sequence of 33 entries .*32, by its {kind} rotary positions"):
        model.backbone.require(33)
    for length, same in ((32, True), (40, False)):
        backbone = tiny_model(kind).backbone
        backbone._limit = None
        ids = torch.arange(length)[None] % 50
        mask = torch.ones_like(ids, dtype=torch.bool)
        whole = backbone.read(ids, mask).hidden[:, -1]
        begun = backbone.read(ids[:, :30], mask[:, :30]).prefix
        behind = backbone.extend(begun, backbone.embed(ids[:, 30:])).hidden[:, -1]
        assert torch.allclose(whole, behind, atol=1e-5) is same


@pytest.mark.parametrize("kind", ["mistral", "gpt2"])
def test_a_sequence_beyond_the_reach_is_refused(kind: str) -> None:
    """In a step, and before an answer is begun; one entry less is taken."""
    examples = make_examples(4)
    config = lora_config(**{"latent.num_tokens": 4, "dataset.drop_last_step": False})
    longest = longest_entries(config, examples)
    model = windowed(kind, longest)
    model(make_batch(model, examples, drop_last_step=False))
    # No longer than the longest sequence there is: latents and trace are never in one.
    model = windowed(kind, longest - 1)
    with pytest.raises(UserError, match=f"a sequence of {longest} entries"):
        model(make_batch(model, examples, drop_last_step=False))
    model = windowed(kind, max(len(e.question) for e in examples) + 5)
    with pytest.raises(UserError, match="longer than this model reaches"):
        model(make_batch(model, examples))
    reasoner = Reasoner(mini_model(kind), mini_builder(), 4, 2)
    with pytest.raises(UserError, match="evaluation.max_new_tokens"):
        reasoner.generate(["How many ?"], max_new_tokens=5000)


def test_beyond_a_window_there_is_nothing_to_distil() -> None:
    """Why it is refused: the answer never sees the trace's first entries, and eviction would rank them all the same."""
    model = tiny_model("mistral")
    assert (recorded(model, "max")[..., 0] > 0).all(dim=(0, 2)).tolist() == [False, True, True, True, False]
    model.backbone.causal_lm.config.sliding_window = 6
    seen = recorded(model, "max")
    assert seen[:, 3, :, 0].max() == 0 < seen[:, 3].max()
