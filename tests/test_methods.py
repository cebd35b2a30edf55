"""The methods: which sequences and losses each has, and that each can learn eight problems by heart."""

from dataclasses import replace

import pytest
import torch

from helpers.tiny import WEIGHTS, mini_builder, mini_examples, mini_model
from kava.data.collate import IGNORED, Batch, Collator
from kava.data.sequences import EncodedExample
from kava.evaluate.accuracy import evaluate_accuracy
from kava.generate import Reasoner
from kava.methods import METHODS
from kava.model.kava import KavaModel

LATENTS = 4
EXAMPLE = EncodedExample([11, 12, 13], [[21, 22, 23], [24, 25], [26, 27]], [5, 6, 7, 8, 30, 1], seed=9)
LONGER = EncodedExample([11], [[31], [32], [33], [34, 35]], [5, 6, 7, 8, 40, 41, 1], seed=8)


def collate(method: str, stage: int = 0, **options: object) -> Batch:
    collator = Collator(METHODS[method], 0, 4, num_latents=LATENTS, tokens_per_stage=3, tokens_per_step=2, **options)  # type: ignore[arg-type]
    collator.stage = stage
    return collator.collate([EXAMPLE, LONGER])


def student(batch: Batch, row: int = 0) -> list[int]:
    return batch.student.ids[row][batch.student.mask[row]].tolist()


@pytest.mark.parametrize(
    ("method", "terms"),
    [
        ("full_cot", {"student_ce"}), ("no_cot", {"student_ce"}), ("icot", {"student_ce"}), ("coconut", {"student_ce"}),
        ("codi", {"student_ce", "teacher_ce", "codi"}), ("pccot", {"student_ce", "teacher_ce", "codi"}),
        ("kava", {"student_ce", "teacher_ce", "codi", "kv"}), ("simcot", {"student_ce", "teacher_ce", "codi", "step_ce"}),
    ],
)  # fmt: skip
def test_losses_of_each_method(method: str, terms: set[str]) -> None:
    """The table of method.md, section 7."""
    builder, model = mini_builder(), mini_model(method=method)
    collator = Collator(METHODS[method], 0, len(builder.prompt_ids), num_latents=LATENTS)
    collator.stage = 1
    output = model(collator.collate([builder.encode(example) for example in mini_examples(3)]))
    assert set(output["terms"]) == terms
    assert METHODS[method].teacher is ("teacher_ce" in terms)


@pytest.mark.parametrize("method", METHODS)
def test_only_distilled_methods_have_a_projection(method: str) -> None:
    assert bool(list(mini_model(method=method).projection.parameters())) is (method in ("codi", "simcot", "pccot", "kava"))


@pytest.mark.parametrize("method", ["no_cot", "codi", "pccot", "kava"])
def test_students_without_a_written_trace(method: str) -> None:
    batch = collate(method)
    assert [student(batch, row) for row in (0, 1)] == [EXAMPLE.answer, LONGER.answer]
    assert batch.num_latents == (0 if method == "no_cot" else LATENTS)
    assert batch.student.distillation_position.tolist() == [3, 3]


def test_full_cot_keeps_the_last_step() -> None:
    batch = collate("full_cot")
    assert student(batch) == [21, 22, 23, 24, 25, 26, 27, *EXAMPLE.answer]
    assert (batch.teacher, batch.num_latents) == (None, 0)


@pytest.mark.parametrize(
    ("drop", "cots"), [(True, ([21, 22, 23, 24, 25], [31, 32, 33])), (False, ([21, 22, 23, 24, 25, 26, 27], [31, 32, 33, 34, 35]))]
)
def test_the_teacher_s_trace(drop: bool, cots: tuple[list[int], list[int]]) -> None:
    teacher = collate("kava", drop_last_step=drop).teacher
    assert teacher is not None
    for row, (cot, example) in enumerate(zip(cots, (EXAMPLE, LONGER), strict=True)):
        assert teacher.ids[row][teacher.mask[row]].tolist() == [*cot, *example.answer]
        assert int(teacher.cot_length[row]) == len(cot)
        # The distillation token is the prompt's last one.
        assert int(teacher.ids[row, teacher.distillation_position[row]]) == 8
        assert teacher.ids[row, teacher.answer_positions[row][teacher.answer_mask[row]]].tolist() == example.answer


@pytest.mark.parametrize(("stage", "written"), [(0, [21, 22, 23, 24, 25, 26, 27]), (1, [24, 25, 26, 27]), (2, [27]), (3, []), (9, [])])
def test_icot_loses_tokens_from_the_front(stage: int, written: list[int]) -> None:
    batch = collate("icot", stage)
    assert student(batch) == [*written, *EXAMPLE.answer]
    assert batch.num_latents == 0


@pytest.mark.parametrize(("stage", "written"), [(0, [21, 22, 23, 24, 25, 26, 27]), (1, [24, 25, 26, 27]), (2, []), (3, [])])
def test_coconut_replaces_steps_by_latents(stage: int, written: list[int]) -> None:
    batch = collate("coconut", stage)
    assert student(batch) == [*written, *EXAMPLE.answer]
    # With all M latents there, nothing is written any more: that is how the model is asked at inference.
    assert batch.num_latents == min(2 * stage, LATENTS)


def test_every_token_is_a_label_and_padding_none() -> None:
    """Which state predicts which label, the naive forward passes prove (tests/model/test_kava.py)."""
    for method in METHODS:
        batch = collate(method, 1)
        for suffix in (batch.student, batch.teacher):
            if suffix is None:
                continue
            assert torch.equal(suffix.labels[suffix.mask], suffix.ids[suffix.mask])
            assert (suffix.labels[~suffix.mask] == IGNORED).all()
            assert suffix.ids.shape[1] == suffix.cot_width + suffix.answer_mask.shape[1]


def learn_by_heart(model: KavaModel, batches: list[Batch], tolerance: float, limit: int = 400) -> int:
    """Adam on the batches in turn until every token is nearly certain; returns the steps taken."""
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    model.train()
    for step in range(limit):
        batch = batches[min(step // 20, len(batches) - 1)]
        output = model(batch)
        optimizer.zero_grad()
        output["loss"].mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if batch is batches[-1] and float(output["terms"]["student_ce"].detach().max()) < tolerance:
            return step
    raise AssertionError(f"student_ce is still {output['terms']['student_ce'].tolist()} after {limit} steps")


@pytest.mark.parametrize("method", METHODS)
def test_each_method_learns_eight_problems_by_heart(method: str) -> None:
    """Trained and then asked: generation must read the sequences that training wrote."""
    examples, builder = mini_examples(8), mini_builder()
    model = mini_model(method=method)
    model.settings = replace(model.settings, weights=WEIGHTS | {"codi": 1.0, "kv": 0.1})
    collator = Collator(METHODS[method], builder.tokenizer.pad_token_id, len(builder.prompt_ids), num_latents=LATENTS)
    encoded = [builder.encode(example) for example in examples]
    batches = []
    for collator.stage in range(4) if METHODS[method].curriculum != "none" else [0]:
        batches.append(collator.collate(encoded))
    learn_by_heart(model, batches, 0.02)
    reasoner = Reasoner(model, builder, batches[-1].num_latents, 3)
    evaluation = evaluate_accuracy(reasoner, examples, batch_size=3, max_new_tokens=40)
    assert evaluation.accuracy == 1.0, [(item.prediction, item.example.answer) for item in evaluation.answered]
    assert all(item.generation.complete for item in evaluation.answered)
