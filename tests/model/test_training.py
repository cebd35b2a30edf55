"""Optimizer steps: every trainable parameter moves, frozen ones do not; reduced precision stays close."""

import pytest
import torch

from helpers.tiny import KINDS, make_batch, make_examples, tiny_model
from kava.losses.total import combine
from kava.methods import METHODS
from kava.model.kava import KavaModel


def train(model: KavaModel, steps: int, method_stage: int = 0) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    batch = make_batch(model, make_examples(), stage=method_stage)
    for _ in range(steps):
        optimizer.zero_grad()
        model(batch)["loss"].mean().backward()
        optimizer.step()


def copies(model: KavaModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_projection_and_new_token_rows_move_and_nothing_else(kind: str) -> None:
    """Fresh adapters (lora_B = 0): lora_A has no gradient in the first step, so two are needed."""
    model = tiny_model(kind, lora=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    before = copies(model)
    train(model.train(), 2)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == trainable
    assert any("lora_A" in name for name in moved)
    assert not any("base_layer" in name for name in moved)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["kava", "codi", "simcot", "full_cot", "coconut"])
def test_full_fine_tuning_moves_every_parameter(kind: str, method: str) -> None:
    model = tiny_model(kind, method=method)
    before = copies(model)
    train(model.train(), 2, method_stage=1)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])] == []


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_autocast_stays_within_two_percent(method: str) -> None:
    # `uniform`: which entries are kept must not hang on the last bits of a score.
    model = tiny_model("llama", method=method, lora=True, eviction="uniform", spread=0.05)
    batch = make_batch(model, make_examples(), stage=1)
    expected = model(batch)["terms"]
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch)
    output["loss"].mean().backward()
    for name, value in output["terms"].items():
        assert value.dtype == torch.float32
        assert value.mean().item() == pytest.approx(expected[name].mean().item(), rel=0.02), name
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", KINDS)
def test_the_total_is_the_weighted_sum_of_the_terms(kind: str) -> None:
    model = tiny_model(kind)
    output = model(make_batch(model, make_examples()))
    terms = output["terms"]
    by_hand = terms["student_ce"] + terms["teacher_ce"] + 10.0 * terms["codi"] + 1.0 * terms["kv"]
    assert torch.allclose(output["loss"], by_hand, rtol=1e-6)
    assert torch.equal(output["loss"], combine(terms, model.settings.weights))


def test_with_dropout_a_step_is_a_function_of_the_seed() -> None:
    model = tiny_model("gpt2").train()
    for block in model.backbone.decoder.h:
        block.mlp.dropout.p = 0.5
    batch = make_batch(model, make_examples())
    losses = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        losses.append(model(batch)["loss"])
    assert torch.equal(losses[0], losses[1])
    assert not torch.allclose(losses[0], losses[2], rtol=1e-3)
