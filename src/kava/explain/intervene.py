"""Causal interventions: how the answers change when one latent is zeroed, replaced by its mean over questions, or swapped.

    effects = interventions(reasoner, examples)

The answer depends on the latents only through the KV cache, so the cache is changed: after the last iteration, keys and values of
one latent in all layers. For mean and swap, keys are moved (RoPE) to the position in the question that they are put into.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from kava.cache.layers import slice_layers, stack_layers
from kava.cache.prefix import Prefix
from kava.cache.rope import rerotate
from kava.data.answer_types import AnswerType, same_prediction
from kava.data.example import Example
from kava.explain.convergence import correctness_of
from kava.explain.record import Effect, Interventions
from kava.generate import Reasoner
from kava.results.statistics import paired_difference, wilson_interval

Kind = Literal["zero", "mean", "swap"]
KINDS: tuple[Kind, ...] = ("zero", "mean", "swap")
Put = Callable[[slice, int | None, Kind], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Thoughts:
    """Latents of all questions: prefixes in batches, and cache entries of the latents with keys moved to position 0, [L, N, H, M, D]."""

    prefixes: list[Prefix]
    passes: int
    keys: Tensor
    values: Tensor

    def batches(self) -> Iterator[tuple[slice, Prefix]]:
        start = 0
        for prefix in self.prefixes:
            stop = start + len(prefix.mask)
            yield slice(start, stop), prefix
            start = stop


def interventions(reasoner: Reasoner, examples: Sequence[Example], batch_size: int = 32, max_new_tokens: int = 64) -> Interventions:
    """Measure every kind of intervention on every latent and on all latents at once, each on the same questions.

    Args:
        reasoner: a model with latents.
        examples: at least two. The donor of a swap is the next question (for the last question: the first).
        batch_size, max_new_tokens: generation settings.
    """
    lab = _Lab(reasoner, [example.question for example in examples], batch_size, max_new_tokens)
    plain = lab.answers(None, None)
    marks = correctness_of(plain, examples)
    effects = []
    for kind in KINDS:
        for latent in [*range(reasoner.num_latents), None]:
            disturbed = lab.answers(latent, kind)
            new_marks = correctness_of(disturbed, examples)
            effects.append(_effect(latent, kind, plain, disturbed, marks, new_marks, reasoner.builder.answer_type))
    return Interventions(questions=len(examples), accuracy=None if marks is None else sum(marks) / len(marks), effects=effects)


class _Lab:
    def __init__(self, reasoner: Reasoner, questions: Sequence[str], batch_size: int, max_new_tokens: int) -> None:
        self.reasoner = reasoner
        self.max_new_tokens = max_new_tokens
        self.thoughts = _think(reasoner, questions, batch_size)

    @torch.inference_mode()
    def answers(self, latent: int | None, kind: Kind | None) -> list[str | None]:
        """Return the predictions after an intervention on one latent (None: all); `kind` None changes nothing."""
        found = []
        for rows, prefix in self.thoughts.batches():
            changed = prefix if kind is None else self._disturbed(rows, prefix, latent, kind)
            opened, logits = self.reasoner.conclude(changed)
            found += self.reasoner.write(opened, logits, self.thoughts.passes + 1, self.max_new_tokens)
        return [item.answer for item in found]

    def _disturbed(self, rows: slice, prefix: Prefix, latent: int | None, kind: Kind) -> Prefix:
        num = self.reasoner.num_latents
        first = prefix.length - num
        keys, values = stack_layers(prefix.layers, first, prefix.length)
        new_keys, new_values = self._replacement(rows, kind)
        at_zero = torch.zeros(new_keys.shape[:4], dtype=torch.long, device=keys.device)
        new_keys = rerotate(self.reasoner.model.backbone.decoder, new_keys, at_zero, _positions(prefix, new_keys))
        chosen = torch.ones(num, dtype=torch.bool, device=keys.device)
        if latent is not None:
            chosen = torch.arange(num, device=keys.device) == latent
        keys = torch.where(chosen[:, None], new_keys.to(keys.dtype), keys)
        values = torch.where(chosen[:, None], new_values.to(values.dtype), values)
        layers = tuple(
            (torch.cat([old_keys, keys[index]], dim=2), torch.cat([old_values, values[index]], dim=2))
            for index, (old_keys, old_values) in enumerate(slice_layers(prefix.layers, 0, first))
        )
        return Prefix(layers, prefix.mask, prefix.next_position, prefix.last_hidden)

    def _replacement(self, rows: slice, kind: Kind) -> tuple[Tensor, Tensor]:
        """Return keys (at position 0) and values to put into all latents of some questions, [L, B, H, M, D]."""
        keys, values = self.thoughts.keys, self.thoughts.values
        if kind == "zero":
            return torch.zeros_like(keys[:, rows]), torch.zeros_like(values[:, rows])
        if kind == "mean":
            return keys.mean(1, keepdim=True).expand_as(keys)[:, rows], values.mean(1, keepdim=True).expand_as(values)[:, rows]
        return keys.roll(-1, dims=1)[:, rows], values.roll(-1, dims=1)[:, rows]


@torch.inference_mode()
def _think(reasoner: Reasoner, questions: Sequence[str], batch_size: int) -> _Thoughts:
    prefixes, keys, values, passes = [], [], [], 0
    for ids, mask in reasoner.batches(questions, batch_size):
        thought, passes = reasoner.think(ids, mask)
        prefix = thought.prefix
        own_keys, own_values = stack_layers(prefix.layers, prefix.length - reasoner.num_latents, prefix.length)
        position = _positions(prefix, own_keys)
        keys.append(rerotate(reasoner.model.backbone.decoder, own_keys, position, torch.zeros_like(position)))
        values.append(own_values)
        prefixes.append(prefix)
    return _Thoughts(prefixes, passes, torch.cat(keys, dim=1), torch.cat(values, dim=1))


def _positions(prefix: Prefix, keys: Tensor) -> Tensor:
    """Return the position id of every latent's cache entry, [L, B, H, M]."""
    slots = torch.arange(keys.shape[3], device=keys.device)
    return (prefix.next_position[:, None] - keys.shape[3] + slots)[None, :, None].expand(keys.shape[:4])


def _effect(
    latent: int | None,
    kind: Kind,
    plain: list[str | None],
    disturbed: list[str | None],
    marks: list[bool] | None,
    new_marks: list[bool] | None,
    answer_type: AnswerType,
) -> Effect:
    same = partial(same_prediction, answer_type=answer_type)
    changed = sum(not same(a, b) for a, b in zip(plain, disturbed, strict=True))
    test = None if marks is None or new_marks is None else paired_difference([(new_marks, marks)])
    took = None
    if kind == "swap":
        donors = [*plain[1:], plain[0]]
        differing = [(new, donor) for old, new, donor in zip(plain, disturbed, donors, strict=True) if not same(old, donor)]
        took = sum(same(new, donor) for new, donor in differing) / len(differing) if differing else None
    return Effect(
        latent=latent,
        kind=kind,
        changed=changed / len(plain),
        changed_ci95=list(wilson_interval(changed, len(plain))),
        accuracy=None if new_marks is None else sum(new_marks) / len(new_marks),
        difference=None if test is None else test.difference,
        difference_ci95=None if test is None else list(test.ci95),
        p_value=None if test is None else test.p_value,
        took_donor=took,
    )
