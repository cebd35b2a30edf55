"""Activation checkpointing that keeps the KV path: the same losses and gradients, and a fraction of what is held for the backward pass."""

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.tiny import ARCHITECTURES, EAGER_ONLY, assert_close, gradients, make_batch, make_examples, relative, tiny_model
from kava.cache.recompute import recompute_layers
from kava.errors import UserError
from kava.methods import METHODS
from kava.model.kava import KavaModel


def both(kind: str = "llama", method: str = "kava", **options: Any) -> tuple[KavaModel, KavaModel]:
    attn = "eager" if kind in EAGER_ONLY else "sdpa"
    plain, saving = tiny_model(kind, attn, method, **options), tiny_model(kind, attn, method, **options)
    recompute_layers(saving.backbone.decoder)
    return plain, saving


def check_equal(plain: KavaModel, saving: KavaModel, stage: int = 0) -> None:
    batch = make_batch(plain, make_examples(), stage=stage)
    outcomes = []
    for model in (plain, saving):
        torch.manual_seed(11)
        output = model(batch)
        outcomes.append((output["terms"], gradients(model, output["loss"].mean())))
    (terms, grads), (saved_terms, saved_grads) = outcomes
    for name, value in terms.items():
        assert torch.equal(saved_terms[name], value), name
    for name, gradient in grads.items():
        assert_close(saved_grads[name], gradient, 1e-5, name)
    assert max(float(gradient.abs().max()) for gradient in grads.values()) > 0


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_losses_and_gradients_are_unchanged(kind: str) -> None:
    check_equal(*both(kind, lora=True))


@pytest.mark.parametrize("method", METHODS)
def test_for_every_method_with_full_weights(method: str) -> None:
    check_equal(*both(method=method), stage={"icot": 1, "coconut": 2}.get(method, 0))


def test_dropout_is_the_same_when_it_is_computed_again() -> None:
    models = both("gpt2")
    for model in models:
        model.train()
        for block in model.backbone.decoder.h:
            block.mlp.dropout.p = 0.5
    check_equal(*models)


def held_bytes(model: KavaModel) -> int:
    """Bytes of distinct storages that a step's graph holds between forward and backward."""
    batch = make_batch(model, make_examples(12), num_latents=12)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(batch)["loss"].mean()
    total = sum(seen.values())
    loss.backward()
    return total


def test_much_less_is_held() -> None:
    plain, saving = both("llama", lora=True)
    assert held_bytes(saving) < 0.35 * held_bytes(plain)


def test_the_gradient_goes_through_the_cache() -> None:
    """Dropping the cache, as transformers' own checkpointing does, or cutting it off would change these."""
    plain, saving = both(lora=True)
    batch = make_batch(plain, make_examples())
    kv = [gradients(model, model(batch)["terms"]["kv"].sum()) for model in (plain, saving)]
    name = next(name for name in kv[0] if "layers.0" in name and "k_proj.lora_A" in name)
    assert kv[0][name].abs().max() > 0
    assert relative(kv[1][name], kv[0][name]) < 1e-5


def test_without_gradients_nothing_is_wrapped() -> None:
    plain, saving = both()
    batch = make_batch(plain, make_examples())
    with torch.no_grad():
        assert torch.equal(saving(batch)["loss"], plain(batch)["loss"])


def test_layers_of_another_kind_are_refused() -> None:
    with pytest.raises(UserError, match=r"training.gradient_checkpointing: .* set it to false"):
        recompute_layers(torch.nn.Linear(2, 2))
