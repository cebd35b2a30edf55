"""A layer with adapters in few operations gives what the model's own layer gives, or takes no part."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.kernels import runs_triton
from helpers.tiny import assert_close, gradients, make_batch, make_examples, set_dropout, tiny_model
from kava.cache.recompute import recompute_layers
from kava.model import layer_kernels as kernels
from kava.model.adapted_layer import AdaptedLayer, fuse_adapted_layers
from kava.model.kava import KavaModel


def _step(model: KavaModel, **batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses and gradients of a training step with random numbers that are always the same."""
    examples = make_batch(model.train(), make_examples(), **batch)
    torch.manual_seed(0)
    loss = model(examples)["loss"]
    return loss.detach(), gradients(model, loss.sum())


def _assert_same(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    assert_close(found[0], expected[0], 1e-6)
    for name, gradient in expected[1].items():
        assert_close(found[1][name], gradient, 2e-5, name)


@pytest.mark.parametrize(
    ("kind", "dropout", "method"),
    [("llama", 0.0, "kava"), ("llama", 0.25, "codi"), ("llama", 0.0, "simcot"), ("qwen2", 0.25, "kava"), ("qwen2", 0.0, "no_cot")],
)
def test_losses_and_gradients_are_those_of_the_models_own_layers(kind: str, dropout: float, method: str) -> None:
    results = []
    for fused in (False, True):
        model = tiny_model(kind, method=method, lora=True)
        set_dropout(model, dropout)
        if fused:
            assert len(fuse_adapted_layers(model.eval().backbone)) == 3
        results.append(_step(model))
    _assert_same(results[1], results[0])


def test_answers_are_those_of_the_models_own_layers() -> None:
    plain, fused = tiny_model("llama", lora=True), tiny_model("llama", lora=True)
    assert fuse_adapted_layers(fused.backbone)
    batch = make_batch(plain, make_examples())
    with torch.inference_mode():
        states = [model.think(batch.question_ids, batch.question_mask, 4)[1].hidden for model in (plain, fused)]
    assert_close(states[1], states[0], 1e-5)


@pytest.mark.parametrize("kind", ["qwen3", "smollm3", "gemma", "gpt2", "phi3"])
def test_layers_that_compute_otherwise_are_left_alone(kind: str) -> None:
    model = tiny_model(kind, lora=True)
    assert fuse_adapted_layers(model.backbone) == []
    assert not any("forward" in vars(layer) for layer in getattr(model.backbone.decoder, "layers", []))


def _doubles_its_mlp(model: KavaModel) -> None:
    """A layer that looks like Llama's and computes otherwise."""
    model.backbone.decoder.layers[1].mlp.register_forward_hook(lambda module, inputs, output: 2 * output)


def _has_a_gradient_of_nan(model: KavaModel) -> None:
    model.backbone.decoder.layers[1].mlp.register_full_backward_hook(lambda module, to_inputs, to_outputs: (torch.nan * to_inputs[0],))


def _trains_a_norm(model: KavaModel) -> None:
    model.backbone.decoder.layers[2].input_layernorm.weight.requires_grad_()


def _recomputes(model: KavaModel) -> None:
    recompute_layers(model.backbone.decoder)


@pytest.mark.parametrize("change", [_doubles_its_mlp, _has_a_gradient_of_nan, _trains_a_norm, _recomputes])
def test_one_layer_that_does_not_fit_leaves_all_as_they_are(change: Callable[[KavaModel], None]) -> None:
    model = tiny_model("llama", lora=True)
    change(model)
    before = [vars(layer).get("forward") for layer in model.backbone.decoder.layers]
    assert fuse_adapted_layers(model.backbone) == []
    # A bound method is a new object each time it is looked up, and equal to the last.
    assert [getattr(layer.forward, "__func__", layer.forward) for layer in model.backbone.decoder.layers] == [
        own or type(layer).forward for own, layer in zip(before, model.backbone.decoder.layers, strict=True)
    ]


def test_layers_without_adapters_are_left_alone() -> None:
    assert fuse_adapted_layers(tiny_model("llama").backbone) == []


def test_other_types_merged_adapters_and_eager_attention_take_the_plain_way() -> None:
    model = tiny_model("llama", lora=True)
    layers = fuse_adapted_layers(model.backbone)
    hidden = model.backbone.embed(torch.zeros(1, 4, dtype=torch.long))
    assert layers[0]._takes(hidden)
    assert not layers[0]._takes(hidden.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not layers[0]._takes(hidden)
    with model.backbone.model.disable_adapter():
        assert not layers[0]._takes(hidden)
    model.backbone.causal_lm.config._attn_implementation = "kava_eager"
    assert not layers[0]._takes(hidden)


def test_what_a_layer_keeps_is_less_than_before() -> None:
    kept: list[int] = []
    for fused in (False, True):
        model = tiny_model("llama", lora=True)
        set_dropout(model, 0.1)
        if fused:
            assert fuse_adapted_layers(model.eval().backbone)
        batch = make_batch(model.train(), make_examples())
        seen: dict[int, int] = {}

        def keep(tensor: Any, seen: dict[int, int] = seen) -> Any:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(batch)["loss"]
        kept.append(sum(seen.values()))
        del loss
    assert kept[1] < 0.9 * kept[0]


def test_a_fused_layer_is_an_object_of_its_layer() -> None:
    layers = fuse_adapted_layers(tiny_model("llama", lora=True).backbone)
    assert all(isinstance(one, AdaptedLayer) and one.layer.forward is one for one in layers)


def test_no_weight_is_stored_twice_and_none_is_used_that_was_replaced() -> None:
    model = tiny_model("qwen2", lora=True)
    layers = fuse_adapted_layers(model.backbone)
    batch = make_batch(model, make_examples())
    attention, mlp = layers[0].layer.self_attn, layers[0].layer.mlp
    for maps in ([attention.q_proj.base_layer, attention.k_proj.base_layer, attention.v_proj.base_layer], [mlp.gate_proj, mlp.up_proj]):
        for name in ("weight", "bias") if maps[0].bias is not None else ("weight",):
            assert len({getattr(one, name).untyped_storage().data_ptr() for one in maps}) == 1
    copied = deepcopy(model)

    def changed(model: KavaModel) -> Tensor:
        """Losses after weights were moved to another type and back, and one of several that are one matrix was replaced."""
        model.backbone.causal_lm.to(torch.float64).to(torch.float32)
        with torch.inference_mode():
            model(batch)
        for layer in model.backbone.decoder.layers:
            for one in (layer.self_attn.k_proj.base_layer.weight, layer.self_attn.v_proj.base_layer.bias, layer.mlp.up_proj.weight):
                one.data = 1.5 * one.data
        return model(batch)["loss"].detach()

    before, plain = model(batch)["loss"].detach(), tiny_model("qwen2", lora=True)
    expected = changed(plain)
    assert not torch.allclose(before, expected, rtol=1e-2)
    assert_close(changed(copied), expected, 1e-5)
    assert_close(model(batch)["loss"].detach(), before, 0.0)
    assert_close(changed(model), expected, 1e-5)
    assert all(gradient.isfinite().all() for gradient in gradients(model, model(batch)["loss"].sum()).values())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_of_a_gpu_give_the_same_gradients(dtype: torch.dtype) -> None:
    results = []
    for fused in (False, True):
        model = tiny_model("llama", lora=True)
        model.backbone.causal_lm.to(torch.float32)
        model.cuda()
        if dtype == torch.bfloat16:
            for parameter in model.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(dtype)
        if fused:
            assert fuse_adapted_layers(model.backbone)
        batch = make_batch(model, make_examples()).to(torch.device("cuda"))
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16, cache_enabled=False):
            loss = model(batch)["loss"]
        results.append((loss.detach(), torch.cat([one.flatten() for one in gradients(model, loss.sum()).values()])))
    (expected, expected_gradient), (found, found_gradient) = results
    assert_close(found, expected, 1e-5 if dtype == torch.float32 else 2e-2)
    difference = float((found_gradient - expected_gradient).norm() / expected_gradient.norm())
    assert difference < (1e-5 if dtype == torch.float32 else 5e-2)


@pytest.mark.parametrize("method", ["codi", "coconut"])
def test_latents_that_are_views_of_hidden_states(method: str) -> None:
    """Without a projection a latent's input is a slice of the hidden states, whose rows do not follow each other in memory."""
    results = []
    for fused in (False, True):
        model = tiny_model("llama", method=method, lora=True, projection=False)
        set_dropout(model, 0.25)
        if fused:
            assert fuse_adapted_layers(model.eval().backbone)
        results.append(_step(model, stage=2))
    _assert_same(results[1], results[0])


@pytest.mark.skipif(not runs_triton(), reason="needs Triton, and a GPU or TRITON_INTERPRET=1")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the kernels anyway")
def test_layers_of_triton_kernels_in_its_interpreter() -> None:
    from kava.model import triton_kernels

    results = []
    for name in ("plain", "kernels"):
        model = tiny_model("llama", method="codi", lora=True, projection=False)
        set_dropout(model, 0.25)
        own = [one for one in kernels.outputs_only() if one not in ("norm", "add_weight_gradient")]  # those two are torch's
        functions = {one: getattr(triton_kernels, one) for one in own} if name == "kernels" else {}
        with kernels.replaced(functions):
            assert fuse_adapted_layers(model.eval().backbone)
            results.append(_step(model))
    _assert_same(results[1], results[0])
