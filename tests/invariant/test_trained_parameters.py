"""Optimizer steps: every trainable parameter moves, frozen ones do not."""

import pytest
import torch

from helpers.tiny import KINDS, make_batch, make_examples, tiny_model
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
