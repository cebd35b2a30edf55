"""Half precision, on a CPU and on a GPU: losses stay float32 and close to those of full precision."""

import pytest
import torch

from helpers.checks import QUESTIONS
from helpers.tiny import KINDS, assert_close, make_batch, make_examples, mini_builder, mini_model, relative, tiny_model
from kava.generate import Reasoner
from kava.methods import METHODS


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
