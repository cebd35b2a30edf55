"""Padded batches of examples; all indices that a step needs are computed beforehand, so that the device never waits for the host."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from math import log1p
from random import Random
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from kava.config import Config
from kava.data.buckets import Buckets
from kava.data.sequences import EncodedExample, SequenceBuilder
from kava.methods import METHODS, Method

# The label of padding positions, which do not count in the loss (the default `ignore_index` of `torch.nn.functional.cross_entropy`).
IGNORED = -100


@dataclass(frozen=True)
class Suffix:
    """Right-padded tokens that follow a prefix: CoT tokens (if any), then the answer part.

    The shapes depend only on the longest trace and the longest answer (or the lengths they are padded to): S is the sum of the two.
    """

    ids: Int[Tensor, "B S"]
    mask: Bool[Tensor, "B S"]
    cot_length: Int[Tensor, " B"]
    cot_width: int
    answer_positions: Int[Tensor, "B A"]
    answer_mask: Bool[Tensor, "B A"]
    distillation_position: Int[Tensor, " B"]

    @property
    def labels(self) -> Int[Tensor, "B S"]:
        """Target tokens: the ids, with `IGNORED` at padding."""
        return self.ids.masked_fill(~self.mask, IGNORED)

    @property
    def cot_mask(self) -> Bool[Tensor, "B C"]:
        """True at the real tokens of the CoT, which come first."""
        return torch.arange(self.cot_width, device=self.ids.device) < self.cot_length[:, None]


@dataclass(frozen=True)
class Batch:
    """Left-padded questions; `teacher` is `c a`, `student` is what follows the question or the latents; `ids` are the examples' ids.

    If the method decodes steps, `steps` is the step index of each latent, then of each token of the teacher's trace (-1: padding).
    If the examples are at different stages of a curriculum, `latent_mask` says which latents each example has: its first ones.
    """

    question_ids: Int[Tensor, "B Q"]
    question_mask: Bool[Tensor, "B Q"]
    student: Suffix
    teacher: Suffix | None
    num_latents: int
    example_seed: Int[Tensor, " B"]
    ids: tuple[str, ...] = ()
    steps: Int[Tensor, "B MC"] | None = None
    latent_mask: Bool[Tensor, "B M"] | None = None

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Batch":
        """Return the batch on another device."""
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory, for the DataLoader."""
        return self.mapped(lambda tensor: tensor.pin_memory())

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with `function` applied to every tensor."""

        def apply(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, Suffix):
                return replace(value, **{item.name: apply(getattr(value, item.name)) for item in fields(value)})
            return value

        return replace(self, **{item.name: apply(getattr(self, item.name)) for item in fields(self)})

    def rows(self, start: int, stop: int) -> "Batch":
        """Return the examples from `start` to `stop` (exclusive), with unchanged padding."""
        return replace(self.mapped(lambda tensor: tensor[start:stop]), ids=self.ids[start:stop])

    def shape_key(self) -> tuple[Any, ...]:
        """Return all shapes and plain numbers that a step depends on: batches with equal keys run the same operations."""
        return _shape_key(self)

    def tensors(self) -> list[Tensor]:
        """Return all tensors, in a fixed order."""
        found: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.mapped(note)
        return found

    def copy_(self, other: "Batch") -> None:
        """Copy the tensors of another batch of the same shape into this one."""
        for tensor, source in zip(self.tensors(), other.tensors(), strict=True):
            tensor.copy_(source, non_blocking=True)

    def __len__(self) -> int:
        return len(self.question_ids)


def _shape_key(part: Batch | Suffix) -> tuple[Any, ...]:
    """See `Batch.shape_key`."""
    key: list[Any] = []
    for value in (getattr(part, item.name) for item in fields(part)):
        if isinstance(value, Tensor):
            key.append(tuple(value.shape))
        elif isinstance(value, Suffix):
            key.append(_shape_key(value))
        elif isinstance(value, int | None):
            key.append(value)
    return tuple(key)


def left_padded(rows: Sequence[list[int]], pad_id: int, width: int | None = None) -> tuple[Int[Tensor, "B Q"], Bool[Tensor, "B Q"]]:
    """Return ids of unequal length as one left-padded tensor, and its attention mask; `width` is at least the longest row (default)."""
    width = width or max(map(len, rows))
    mask = torch.arange(width) >= width - torch.tensor([len(row) for row in rows])[:, None]
    return torch.tensor([[pad_id] * (width - len(row)) + row for row in rows]), mask


class Collator:
    """Pads encoded examples into a `Batch` for one method at one stage of its curriculum.

    Args:
        method: which sequences to build.
        pad_id: id of the padding token; never attended to.
        prompt_length: number of tokens in the fixed text of the answer; the last one is the distillation token.
        num_latents: M, the number of latents.
        drop_last_step: leave the last CoT step out of the teacher's trace.
        tokens_per_stage: iCoT, tokens removed per stage.
        remove_all_beyond: iCoT, a stage that removes more tokens than this removes all.
        removal_smoothing: iCoT, k more tokens are removed with a probability proportional to exp(-k x this).
        trailing_stage: Coconut, the first stage with all latents still writes the steps after those that the latents replace.
        tokens_per_step: Coconut, latents that replace one step; SIM-CoT, latents that one step is decoded from.

    Attributes:
        stage: current stage of the curriculum, unless `collate` gets one for each example.
        draw: seed and step; random choices for an example depend on them and on its content.
        buckets: lengths to pad to; None: pad to the longest part in each batch.
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
        remove_all_beyond: int | None = None,
        removal_smoothing: float | None = None,
        trailing_stage: bool = False,
        tokens_per_step: int = 2,
    ) -> None:
        self.method = method
        self.pad_id = pad_id
        self.prompt_length = prompt_length
        self.num_latents = num_latents
        self.drop_last_step = drop_last_step
        self.tokens_per_stage = tokens_per_stage
        self.remove_all_beyond = remove_all_beyond
        self.removal_smoothing = removal_smoothing
        self.trailing_stage = trailing_stage
        self.tokens_per_step = tokens_per_step
        self.stage = 0
        self.draw = (0, 0)
        self.buckets: Buckets | None = None

    def collate(self, examples: Sequence[EncodedExample], stages: Sequence[int] | None = None) -> Batch:
        """Build a batch from encoded examples.

        Args:
            examples: the examples.
            stages: stage of each example; default: `stage`. With them, the batch has the latents of the last stage, whatever the stages
                are, so that all processes run the same passes.
        """
        questions, answers = [example.question for example in examples], [example.answer for example in examples]
        written = [self._written(example, stage) for example, stage in zip(examples, stages or [self.stage] * len(examples), strict=True)]
        read = [example.cot(self.drop_last_step) for example in examples] if self.method.teacher else None
        question, trace, answer = (max(map(len, parts)) for parts in (questions, written + (read or []), answers))
        if self.buckets is not None:
            question, trace, answer = self.buckets.around(question, trace, answer)
        question_ids, question_mask = left_padded(questions, self.pad_id, question)
        return Batch(
            question_ids=question_ids,
            question_mask=question_mask,
            student=self._suffix(written, answers, trace if any(written) else 0, answer),
            teacher=None if read is None else self._suffix(read, answers, trace, answer),
            num_latents=self._latents_at(self.stage) if stages is None else self._most_latents,
            example_seed=torch.tensor([example.seed for example in examples]),
            ids=tuple(example.id for example in examples),
            steps=self._steps(examples, trace) if self.method.step_decoder else None,
            latent_mask=None if stages is None else self._latent_mask(stages),
        )

    @property
    def _most_latents(self) -> int:
        return self.num_latents if self.method.uses_latents else 0

    def _latents_at(self, stage: int) -> int:
        """Return the number of latents in the student's sequence at a stage."""
        if self.method.curriculum == "replace_steps":
            return min(stage * self.tokens_per_step, self._most_latents)
        return self._most_latents

    def _latent_mask(self, stages: Sequence[int]) -> Bool[Tensor, "B M"] | None:
        """Build `Batch.latent_mask`."""
        if not self.method.uses_latents:
            return None
        return torch.arange(self._most_latents) < torch.tensor([self._latents_at(stage) for stage in stages])[:, None]

    def _written(self, example: EncodedExample, stage: int) -> list[int]:
        """Return the part of the trace that the student still writes at a stage."""
        if self.method.writes_cot:
            return example.cot(drop_last_step=False)
        if self.method.curriculum == "remove_tokens":
            removed = stage * self.tokens_per_stage
            gone = self.remove_all_beyond is not None and removed > self.remove_all_beyond
            return [] if gone else example.cot(drop_last_step=False)[removed + self._offset(example) :]
        if self.method.curriculum == "replace_steps":
            if (stage - self.trailing_stage) * self.tokens_per_step >= self.num_latents:
                return []
            return [token for step in example.steps[stage:] for token in step]
        return []

    def _offset(self, example: EncodedExample) -> int:
        """Return how many tokens are removed in addition to those of the stage, drawn from a geometric distribution."""
        if self.removal_smoothing is None:
            return 0
        uniform = Random(f"removal {self.draw} {example.seed}").random()
        return int(-log1p(-uniform) / self.removal_smoothing)

    def _steps(self, examples: Sequence[EncodedExample], width: int) -> Int[Tensor, "B MC"]:
        """Build `Batch.steps`. The last group of latents takes all remaining latents and steps."""
        count = self._latents_at(self.stage)
        last = max(count // self.tokens_per_step, 1) - 1
        latents = [min(latent // self.tokens_per_step, last) for latent in range(count)]
        rows = []
        for example in examples:
            read = example.steps[:-1] if self.drop_last_step else example.steps
            trace = [min(number, last) for number, step in enumerate(read) for _ in step]
            rows.append(latents + trace + [-1] * (width - len(trace)))
        return torch.tensor(rows)

    def _suffix(self, cots: list[list[int]], answers: list[list[int]], cot_width: int, answer_width: int) -> Suffix:
        sequences = [cot + answer for cot, answer in zip(cots, answers, strict=True)]
        width = cot_width + answer_width
        cot_length = torch.tensor([len(cot) for cot in cots])
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        offsets = torch.arange(answer_width)
        return Suffix(
            ids=torch.tensor([sequence + [self.pad_id] * (width - len(sequence)) for sequence in sequences]),
            mask=torch.arange(width) < lengths[:, None],
            cot_length=cot_length,
            cot_width=cot_width,
            answer_positions=cot_length[:, None] + offsets,
            answer_mask=offsets < (lengths - cot_length)[:, None],
            distillation_position=cot_length + self.prompt_length - 1,
        )


def build_collator(config: Config, builder: SequenceBuilder, num_latents: int | None = None) -> Collator:
    """Build the collator of the configured method, at stage 0 of its curriculum.

    Args:
        config: configuration of the run.
        builder: builder of the run's sequences.
        num_latents: M, if it differs from the configured value.
    """
    return Collator(
        METHODS[config.method],
        builder.tokenizer.pad_token_id,
        len(builder.prompt_ids),
        num_latents=config.latent.num_tokens if num_latents is None else num_latents,
        drop_last_step=config.dataset.drop_last_step,
        tokens_per_stage=config.training.tokens_per_stage,
        remove_all_beyond=config.training.remove_all_beyond,
        removal_smoothing=config.training.removal_smoothing,
        trailing_stage=config.training.trailing_stage,
        tokens_per_step=config.latent.tokens_per_step,
    )
