"""A padded batch of examples, with everything a step needs indexed beforehand so that the device never waits for the host."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from kava.data.sequences import EncodedExample
from kava.methods import Method


@dataclass(frozen=True)
class Suffix:
    """Text that follows a prefix, right-padded: CoT tokens (if any), then the answer part.

    Row `b * (S + 1) + t` of `rows` is the hidden state that predicts token t of example b, when the hidden states are
    laid out as [prefix's last, token 0, .., token S - 1] per example.
    """

    ids: Int[Tensor, "B S"]
    mask: Bool[Tensor, "B S"]
    cot_length: Int[Tensor, " B"]
    cot_width: int
    answer_positions: Int[Tensor, "B A"]
    answer_mask: Bool[Tensor, "B A"]
    distillation_position: Int[Tensor, " B"]
    rows: Int[Tensor, " N"]
    labels: Int[Tensor, " N"]
    example: Int[Tensor, " N"]


@dataclass(frozen=True)
class Batch:
    """Questions left-padded; `teacher` is `c a`, `student` is what follows the question or the latents; `ids` name the examples."""

    question_ids: Int[Tensor, "B Q"]
    question_mask: Bool[Tensor, "B Q"]
    student: Suffix
    teacher: Suffix | None
    num_latents: int
    example_seed: Int[Tensor, " B"]
    ids: tuple[str, ...] = ()

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Batch":
        """The same batch on another device."""
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, for the DataLoader."""
        return self.mapped(lambda tensor: tensor.pin_memory())

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """The same batch with `function` of every tensor."""

        def apply(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, Suffix):
                return replace(value, **{item.name: apply(getattr(value, item.name)) for item in fields(value)})
            return value

        return replace(self, **{item.name: apply(getattr(self, item.name)) for item in fields(self)})

    def __len__(self) -> int:
        return len(self.question_ids)


def left_padded(rows: Sequence[list[int]], pad_id: int) -> tuple[Int[Tensor, "B Q"], Bool[Tensor, "B Q"]]:
    """Ids of unequal length as one tensor whose rows end together, and which of them are real."""
    width = max(map(len, rows))
    mask = torch.arange(width) >= width - torch.tensor([len(row) for row in rows])[:, None]
    return torch.tensor([[pad_id] * (width - len(row)) + row for row in rows]), mask


class Collator:
    """Pads encoded examples into a `Batch` for one method at one stage of its curriculum.

    Args:
        method: which sequences to build.
        pad_id: fills the gaps; never attended to.
        prompt_length: tokens of the answer's fixed text; its last one is the distillation token.
        num_latents: M.
        drop_last_step: leave the last CoT step out of the teacher's trace.
        tokens_per_stage: iCoT, tokens removed per stage.
        tokens_per_step: Coconut, latents that replace one step.
    """

    def __init__(
        self,
        method: Method,
        pad_id: int,
        prompt_length: int,
        *,
        num_latents: int,
        drop_last_step: bool = True,
        tokens_per_stage: int = 8,
        tokens_per_step: int = 2,
    ) -> None:
        self.method = method
        self.pad_id = pad_id
        self.prompt_length = prompt_length
        self.num_latents = num_latents
        self.drop_last_step = drop_last_step
        self.tokens_per_stage = tokens_per_stage
        self.tokens_per_step = tokens_per_step
        self.stage = 0

    def __call__(self, examples: Sequence[EncodedExample]) -> dict[str, Batch]:
        """A one-entry dictionary, because the Trainer passes batches as keyword arguments."""
        return {"batch": self.collate(examples)}

    def collate(self, examples: Sequence[EncodedExample]) -> Batch:
        """Build the batch."""
        question_ids, question_mask = left_padded([example.question for example in examples], self.pad_id)
        answers = [example.answer for example in examples]
        teacher = None
        if self.method.teacher:
            teacher = self._suffix([e.cot(self.drop_last_step) for e in examples], answers)
        return Batch(
            question_ids=question_ids,
            question_mask=question_mask,
            student=self._suffix([self._written(example) for example in examples], answers),
            teacher=teacher,
            num_latents=self.latents_now,
            example_seed=torch.tensor([example.seed for example in examples]),
            ids=tuple(example.id for example in examples),
        )

    @property
    def latents_now(self) -> int:
        """Latents of the student's sequence at this stage."""
        if not self.method.thinks:
            return 0
        if self.method.curriculum == "replace_steps":
            return min(self.stage * self.tokens_per_step, self.num_latents)
        return self.num_latents

    def _written(self, example: EncodedExample) -> list[int]:
        """The part of the trace that the student still writes at this stage."""
        if self.method.writes_cot:
            return example.cot(drop_last_step=False)
        if self.method.curriculum == "remove_tokens":
            return example.cot(drop_last_step=False)[self.stage * self.tokens_per_stage :]
        if self.method.curriculum == "replace_steps":
            if self.stage * self.tokens_per_step >= self.num_latents:
                return []
            return [token for step in example.steps[self.stage :] for token in step]
        return []

    def _suffix(self, cots: list[list[int]], answers: list[list[int]]) -> Suffix:
        sequences = [cot + answer for cot, answer in zip(cots, answers, strict=True)]
        width = max(map(len, sequences))
        longest_answer = max(map(len, answers))
        cot_length = torch.tensor([len(cot) for cot in cots])
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        offsets = torch.arange(longest_answer)
        answer_mask = offsets < torch.tensor([len(answer) for answer in answers])[:, None]
        mask = torch.arange(width) < lengths[:, None]
        example, position = mask.nonzero(as_tuple=True)
        ids = torch.tensor([sequence + [self.pad_id] * (width - len(sequence)) for sequence in sequences])
        return Suffix(
            ids=ids,
            mask=mask,
            cot_length=cot_length,
            cot_width=int(cot_length.max()),
            answer_positions=(cot_length[:, None] + offsets).clamp(max=width - 1),
            answer_mask=answer_mask,
            distillation_position=cot_length + self.prompt_length - 1,
            rows=example * (width + 1) + position,
            labels=ids[mask],
            example=example,
        )
