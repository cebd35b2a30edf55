"""LoRA in groups: what peft's own forward gives, in few operations, with weights that follow every optimizer."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from peft.tuners.lora.layer import Linear as LoraLinear

from helpers.tiny import assert_close, gradients, make_batch, make_examples, tiny_model
from kava.model.kava import KavaModel


@contextmanager
def peft_forward(model: KavaModel) -> Iterator[None]:
    """Every adapter by peft's own forward."""
    fused = {module: module.__dict__.pop("forward") for module in model.modules() if "forward" in module.__dict__}
    assert fused
    try:
        yield
    finally:
        for module, forward in fused.items():
            module.forward = forward


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_maps_of_one_input_are_one_group_and_give_what_peft_gives(kind: str) -> None:
    model = tiny_model(kind, lora=True)
    assert [len(group.members) for group in model.backbone.adapters.groups] == [3, 1] * 3
    batch = make_batch(model, make_examples())
    ours = model(batch)["loss"]
    ours_gradients = gradients(model, ours.sum())
    with peft_forward(model):
        theirs = model(batch)["loss"]
        theirs_gradients = gradients(model, theirs.sum())
    assert_close(ours, theirs, 1e-6)
    assert ours_gradients.keys() == theirs_gradients.keys()
    for name, gradient in theirs_gradients.items():
        assert_close(ours_gradients[name], gradient, 2e-5, name)


def test_an_adapter_on_anything_but_a_plain_linear_map_stays_pefts() -> None:
    assert tiny_model("gpt2", lora=True).backbone.adapters.groups == ()


@pytest.mark.parametrize("kind", [{"foreach": True}, {"fused": True}, {"foreach": False}])
def test_the_casts_follow_every_kind_of_optimizer(kind: dict[str, bool]) -> None:
    model = tiny_model("llama", lora=True)
    batch = make_batch(model, make_examples())
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2, **kind)
    before = model(batch)["loss"]
    before.sum().backward()
    optimizer.step()
    after = model(batch)["loss"].detach()
    with peft_forward(model):
        assert_close(after, model(batch)["loss"].detach(), 1e-6)
    assert not torch.allclose(before, after)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_summed_in_place_are_autograds(dtype: torch.dtype, device: str) -> None:
    """Added to what is there; where `.grad` was dropped or set to zero, they begin anew. Outside of the block autograd has them."""
    model = tiny_model("llama", lora=True)
    model.backbone.causal_lm.to(dtype)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.float() if "lora_" in name else parameter.data
    model.to(device)
    batch = make_batch(model, make_examples()).to(torch.device(device))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    def summed(passes: int) -> dict[str, torch.Tensor]:
        for _ in range(passes):
            with torch.autocast(device, dtype, enabled=dtype != torch.float32), model.backbone.adapters.sum_gradients():
                model(batch)["loss"].sum().backward()
        return {name: parameter.grad.clone() for name, parameter in trained.items() if parameter.grad is not None}

    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        expected = gradients(model, model(batch)["loss"].sum())
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    model.zero_grad()
    for passes, set_to_none in ((2, False), (1, True), (1, False)):
        found = summed(passes)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert_close(found[name], passes * gradient, tolerance, name)
        model.zero_grad(set_to_none=set_to_none)
    for name, gradient in zip(trained, torch.autograd.grad(model(batch)["loss"].sum(), [*trained.values()]), strict=True):
        assert gradient.abs().max() > 0, name


def test_dropout_is_shared_by_a_group_and_scaled_as_it_should() -> None:
    model = tiny_model("llama", lora=True)
    group = model.backbone.adapters.groups[0]
    for member in group.members:
        member.module.lora_dropout[member.adapter] = torch.nn.Dropout(0.25)
    model.train()
    x = torch.ones(4000, member.module.in_features, requires_grad=True)
    plain = [torch.nn.functional.linear(x, *member.frozen) for member in group.members]
    dropped = [group.call(index, x) - plain[index] for index in range(3)]
    down, up = group.members[0].trained
    expected = group.members[0].scaling * (torch.ones(1, x.shape[1]) @ down.T) @ up.T
    assert_close(dropped[0].mean(0, keepdim=True), expected, 0.05)
    # One mask for all: where the first map sees nothing dropped, so does the last.
    torch.manual_seed(5)
    first = group.call(0, x)
    torch.manual_seed(5)
    again = group.call(0, x.clone())
    assert torch.equal(first, again)
    (gradient,) = torch.autograd.grad(group.call(2, x).sum(), x)
    assert gradient.isfinite().all()


def test_merged_or_disabled_adapters_are_left_to_peft() -> None:
    model = tiny_model("llama", lora=True)
    batch = make_batch(model, make_examples())
    with_adapters = model(batch)["loss"].detach()
    with model.backbone.model.disable_adapter():
        without = model(batch)["loss"].detach()
    modules = [module for module in model.modules() if isinstance(module, LoraLinear)]
    for module in modules:
        module.merge()
    merged = model(batch)["loss"].detach()
    for module in modules:
        module.unmerge()
    assert not torch.allclose(without, with_adapters)
    assert_close(merged, with_adapters, 1e-4)
    assert_close(model(batch)["loss"].detach(), with_adapters, 1e-5)
