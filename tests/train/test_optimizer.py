"""Optimizers by name: what is decayed, what is fused, and what cannot be used."""

import math
import warnings

import pytest
import torch
from torch import nn

from helpers.tiny import tiny_model
from kava.config.schema import TrainingConfig
from kava.errors import UserError
from kava.train.optimizer import build_optimizer, build_schedule, check_optimizer

CPU = torch.device("cpu")


def test_scales_and_offsets_are_not_decayed() -> None:
    model = tiny_model("gpt2")
    groups = build_optimizer(model, TrainingConfig(weight_decay=0.3), CPU).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    decayed, others = ({id(parameter) for parameter in group["params"]} for group in groups)
    for name, parameter in model.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim > 1), name
    assert len(decayed) + len(others) == len({id(parameter) for parameter in model.parameters()})


def test_frozen_weights_are_left_to_themselves() -> None:
    model = tiny_model(lora=True)
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    groups = build_optimizer(model, TrainingConfig(), CPU).param_groups
    assert {id(parameter) for group in groups for parameter in group["params"]} == trained


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("adamw_torhc", "training.optimizer 'adamw_torhc' is unknown; did you mean 'adamw_torch'"),
        ("lomo", "training.optimizer lomo changes weights before a step's numbers are known to be finite"),
        ("schedule_free_adamw", "training.optimizer schedule_free_adamw evaluates with weights that differ from the trained"),
        ("galore_adamw", "training.optimizer galore_adamw cannot be used here: "),
    ],
)
def test_what_cannot_be_used_is_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build_optimizer(nn.Linear(2, 2), TrainingConfig(optimizer=name), CPU)


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "rmsprop"])
def test_named_optimizers_take_a_step(name: str) -> None:
    check_optimizer(name)
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    optimizer = build_optimizer(model, TrainingConfig(optimizer=name, learning_rate=0.1), CPU)
    before = model.weight.detach().clone()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.weight, before)


def test_the_schedule_warms_up_and_says_nothing_of_a_first_step_left_out() -> None:
    training = TrainingConfig(learning_rate=1.0, warmup_ratio=0.2, lr_scheduler="cosine")
    rates = []
    with warnings.catch_warnings(record=True) as caught:
        schedule = build_schedule(build_optimizer(nn.Linear(1, 1), training, CPU), training, 10)
        for _ in range(10):
            rates.append(schedule.get_last_lr()[0])
            schedule.step()
    assert not [item for item in caught if "lr_scheduler.step" in str(item.message)]
    assert rates == pytest.approx([0, 0.5, *(0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8))])
