"""What is measured: exact lengths, equal work, and FLOPs as torch counts them."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kava.errors import UserError, at_least
from kava.methods import METHODS
from kava.runtime.device import choose_device
from kava.tools.bench.flops import passes, shape_of, step_flops
from kava.tools.bench.step import VARIANTS, _losses, _step, _values
from kava.tools.bench.workload import Workload, build_workload, random_batch, random_questions

SMALL = Workload(shape="mini", batch=2, question=9, cot=7, answer=6, latents=4, iterations=3, lora_r=4)


def test_batch_has_exactly_the_asked_lengths() -> None:
    trained = build_workload(SMALL)
    batch = random_batch(SMALL, trained)
    assert batch.question_ids.shape == (2, 9)
    assert batch.teacher is not None
    assert batch.teacher.ids.shape == (2, 7 + 6)
    assert batch.teacher.cot_length.tolist() == [7, 7]
    assert batch.student.ids.shape == (2, 6)
    assert batch.question_mask.all()
    assert batch.teacher.mask.all()
    special = set(trained.model.backbone.special_ids.tolist())
    assert not special & set(batch.question_ids.flatten().tolist())


def test_questions_have_exactly_the_asked_length() -> None:
    builder = build_workload(SMALL).builder
    questions = random_questions(builder, 3, 17)
    assert [len(builder.question_ids(question)) for question in questions] == [17] * 3
    assert len(set(questions)) == 3


def test_the_same_workload_is_the_same_model() -> None:
    first, second = (build_workload(SMALL).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_variants_do_the_same_work() -> None:
    trained = build_workload(replace(SMALL, shape="tiny"))
    model, batch = trained.model, random_batch(SMALL, trained)
    values, gradients = {}, {}
    for variant in VARIANTS:
        values[variant] = _values(_losses(variant)(model, batch))
        _step(model, batch, _losses(variant))
        gradients[variant] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    for variant in ("naive", "pccot"):
        assert values[variant] == pytest.approx(values["ours"], rel=1e-5)
        assert float((gradients[variant] - gradients["ours"]).norm() / gradients["ours"].norm()) < 1e-4


@pytest.mark.parametrize("lora_r", [4, 0], ids=["lora", "full"])
def test_needed_flops_are_close_to_what_torch_counts(lora_r: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch's counter does not know oneDNN's products.
    monkeypatch.setattr("kava.runtime.cpu_matmul.onednn_is_faster", lambda: False)
    workload = replace(SMALL, lora_r=lora_r)
    trained = build_workload(workload)
    model, batch = trained.model, random_batch(workload, trained)
    # Eager attention consists of the plain products that torch counts, forward and backward.
    model.backbone.causal_lm.set_attn_implementation("kava_eager")
    counter = FlopCounterMode(display=False)
    with counter:
        _step(model, batch, _losses("ours"))
    assert step_flops(workload, shape_of(workload)) == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_passes_hold_the_latents_that_are_neither_final_nor_lead_nowhere() -> None:
    assert passes(SMALL) == [(11, 11), (2, 12), (2, 13), (9, 21), (13, 22)]
    assert len(passes(replace(SMALL, iterations=99))) == 2 + SMALL.latents
    assert passes(replace(SMALL, iterations=0)) == [(14, 14), (7, 21), (13, 22)]
    assert passes(replace(SMALL, method="full_cot")) == [(22, 22)]


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.curriculum == "none"])
def test_each_method_takes_the_passes_that_are_counted(method: str) -> None:
    workload = replace(SMALL, shape="tiny", method=method)
    trained = build_workload(workload)
    model = trained.model
    assert model.method.name == method
    model(random_batch(workload, trained))
    assert model.backbone.forward_passes == len(passes(workload))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch", 0, "batch_size is 0; it must be at least 1"),
        ("answer", 5, "answer is 5; it must be at least 6"),
        ("latents", -1, "latent.num_tokens"),
    ],
)
def test_impossible_workloads_are_named(field: str, value: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(SMALL, **{field: value}).config()


def test_unknown_names_are_named() -> None:
    with pytest.raises(UserError, match="unknown shape 'huge'; valid shapes: llama-1b, smollm2-135m, small, mini, tiny"):
        build_workload(replace(SMALL, shape="huge"))
    with pytest.raises(UserError, match="device 'tpu' is unknown"):
        choose_device("tpu")
    with pytest.raises(UserError, match="repeats is 0"):
        at_least(1, repeats=0)
