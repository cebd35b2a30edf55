"""One training step, for every method. Read this module first.

    question ──┬── teacher:  c a                      -> CE_teacher, trace (keys, values, importance)
               └── student:  <bot> z_1 .. z_M <eot> a -> CE_student, latent keys and values

The question is computed once and shared by both. Passes are merged where possible: the prefill of the latents runs with the question, and
on a GPU the teacher's branch too, if the model takes any mask; the last iteration runs with the answer. So a step with T > 0 iterations
takes T + 2 passes, and T + 1 on a GPU.
L = CE_student + CE_teacher + alpha1 L_CODI + alpha2 L_KV.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kava.cache.layers import stack_layers
from kava.cache.prefix import Extension, Prefix
from kava.cache.rope import unrotate
from kava.data.collate import Batch
from kava.eviction import Compressed, Trace, compress
from kava.losses.hidden import codi_loss
from kava.losses.kv import Parts, kv_loss
from kava.losses.steps import step_loss
from kava.losses.total import LossTerms, combine
from kava.methods import Method
from kava.model.backbone import Backbone
from kava.model.latents import Thought, follow, iterate, parallel_tail, sequential_tail
from kava.model.passes import Reading, read_branches, read_steps, read_suffix, read_trace, read_whole
from kava.runtime.device import runs_as_on_gpu


@dataclass(frozen=True)
class Settings:
    """The plain values that a training step needs, taken from the configuration by `kava.model.build`."""

    num_iterations: int
    weights: Mapping[str, float]
    kv_loss_type: str = "smooth_l1"
    codi_loss_type: str = "smooth_l1"
    layerwise_std: bool = True
    kv_rope: str = "post"
    kv_parts: Parts = "both"
    kv_iterations: str = "last"
    eviction: str = "rkv"
    rkv_lambda: float = 0.1
    group_reduction: str = "max"
    importance: str = "context"
    share: str = "head"
    eviction_seed: int = 0


class KavaModel(nn.Module):
    """Backbone and projection, trained by one method.

    Args:
        backbone: the language model.
        projection: hidden state -> latent input embedding.
        method: which passes and losses there are.
        settings: weights and choices of the losses.
    """

    def __init__(self, backbone: Backbone, projection: nn.Module, method: Method, settings: Settings) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = projection
        self.method = method
        self.settings = settings
        # Of the published base model (`kava.model.build.fingerprint_of`); empty if unknown.
        self.base_fingerprint = ""
        # Whether the weights are sharded over several processes (`kava.train.sharding`).
        self.is_sharded = False

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Losses of a batch.

        Returns:
            `loss`: the total per example, [B]; `terms`: the unweighted `LossTerms`, each [B].
        """
        terms = self.losses(batch)
        return {"loss": combine(terms, self.settings.weights), "terms": terms}

    def call(self, run: Callable[[], Any]) -> Any:
        """Run passes outside `forward`; sharding (`kava.train.sharding`) hooks this method as it hooks `forward`."""
        return run()

    def losses(self, batch: Batch) -> LossTerms:
        """The terms of the loss that this method has, each per example (method.md, section 5)."""
        method, settings = self.method, self.settings
        if not method.uses_latents:
            return {"student_ce": read_whole(self.backbone, batch.question_ids, batch.question_mask, batch.student).cross_entropy}
        every = method.kv and settings.kv_iterations == "all"
        tail = self._tail(len(batch), batch.num_latents, settings.num_iterations, every)
        run, taught = self._first_pass(batch, tail)
        question, thought = self._latents(
            run, batch.question_ids.shape[1], batch.num_latents, settings.num_iterations,
            latent_mask=batch.latent_mask, keep_trajectory=every, defer_last=True,
        )  # fmt: skip
        eot = self.backbone.special_embeddings()[1:2].expand(len(batch), -1, -1)
        lead = eot if thought.pending is None else torch.cat([thought.pending, eot], dim=1)
        student = read_suffix(self.backbone, thought.prefix, batch.student, lead=lead, keep_hidden=method.codi)
        terms: LossTerms = {"student_ce": student.cross_entropy}
        if batch.teacher is None:
            return terms
        teacher, trace = taught or self.read_teacher(question, batch, keep_hidden=method.codi)
        terms["teacher_ce"] = teacher.cross_entropy
        if teacher.distillation is not None and student.distillation is not None:
            terms["codi"] = codi_loss(teacher.distillation, student.distillation, settings.codi_loss_type, settings.layerwise_std)
        if batch.steps is not None:
            latents = self.projection(thought.hidden[:, : batch.num_latents])
            decoded = read_steps(self.backbone, latents, batch.teacher, batch.steps)
            terms["step_ce"] = step_loss(decoded, batch.steps[:, batch.num_latents :])
        if method.kv:
            target = self.compressed(trace, batch.num_latents)
            passes = (*thought.earlier, student.prefix)
            terms["kv"] = torch.stack([self.match_cache(target, question, prefix) for prefix in passes]).mean(0)
        return terms

    def _first_pass(self, batch: Batch, tail: Tensor) -> tuple[Extension, tuple[Reading, Trace] | None]:
        """The pass of the question and the `tail` behind it, on a GPU with the teacher's in it, if the model takes a mask for that."""
        ids, mask = batch.question_ids, batch.question_mask
        # On a CPU fewer passes save nothing.
        if batch.teacher is None or not (ids.is_cuda or runs_as_on_gpu()) or not self.backbone.takes_any_mask:
            return self.backbone.read(ids, mask, tail), None
        run, reading, trace = read_branches(
            self.backbone, ids, mask, tail, batch.teacher, batch.example_seed, keep_hidden=self.method.codi, **self._recorded
        )
        return run, (reading, trace)

    def read_teacher(self, question: Prefix, batch: Batch, *, keep_hidden: bool) -> tuple[Reading, Trace]:
        """The teacher's pass over the written traces, which the batch must contain."""
        assert batch.teacher is not None
        return read_trace(self.backbone, question, batch.teacher, batch.example_seed, keep_hidden=keep_hidden, **self._recorded)

    @property
    def _recorded(self) -> dict[str, str]:
        """How the teacher's pass records importance."""
        importance = "window" if self.settings.eviction == "rkv_original" else self.settings.importance
        return {"group_reduction": self.settings.group_reduction, "importance": importance}

    def compressed(self, trace: Trace, num_latents: int) -> Compressed:
        """The target of the KV loss: M entries selected from the trace."""
        settings = self.settings
        return compress(trace, settings.eviction, num_latents, settings.rkv_lambda, settings.eviction_seed, settings.share)

    def think(
        self,
        ids: Int[Tensor, "B Q"],
        mask: Bool[Tensor, "B Q"],
        num_latents: int,
        num_iterations: int | None = None,
        *,
        latent_mask: Bool[Tensor, "B M"] | None = None,
        keep_trajectory: bool = False,
        defer_last: bool = False,
    ) -> tuple[Prefix, Thought]:
        """Read left-padded questions and reason in latents, whose prefill runs in the question's pass. Returns (question, thought).

        Args:
            ids, mask: the questions.
            num_latents: M.
            num_iterations: T of parallel latents; default: that of the settings.
            latent_mask: of sequential latents, see `kava.model.latents.follow`.
            keep_trajectory, defer_last: see `kava.model.latents.iterate`.
        """
        iterations = self.settings.num_iterations if num_iterations is None else num_iterations
        run = self.backbone.read(ids, mask, self._tail(len(ids), num_latents, iterations, keep_trajectory))
        return self._latents(
            run, ids.shape[1], num_latents, iterations, latent_mask=latent_mask, keep_trajectory=keep_trajectory, defer_last=defer_last
        )

    def _tail(self, batch: int, num_latents: int, iterations: int, keep_trajectory: bool) -> Float[Tensor, "B n E"]:
        """What is read behind the question in its pass: `<bot>`, and the prefill of parallel latents."""
        if self.method.latents == "sequential":
            return sequential_tail(self.backbone, batch)
        return parallel_tail(self.backbone, num_latents, iterations, batch, keep_trajectory=keep_trajectory)

    def _latents(
        self, run: Extension, width: int, num_latents: int, iterations: int, *,
        latent_mask: Bool[Tensor, "B M"] | None, keep_trajectory: bool, defer_last: bool,
    ) -> tuple[Prefix, Thought]:  # fmt: skip
        """The question, `width` entries, and the latents behind it, from the pass that ended with `_tail`."""
        question = run.prefix.shortened(run.prefix.length - width, run.hidden[:, width - 1 : width])
        if self.method.latents == "sequential":
            return question, follow(self.backbone, run, self.projection, num_latents, mask=latent_mask, defer_last=defer_last)
        return question, iterate(
            self.backbone, run, self.projection, num_latents, iterations, keep_trajectory=keep_trajectory, defer_last=defer_last
        )

    def match_cache(self, target: Compressed, question: Prefix, thought: Prefix) -> Float[Tensor, " B"]:
        """L_KV of the latents' entries against the compressed trace, slot by slot; see `matched`."""
        settings = self.settings
        target_keys, keys, values = self.matched(target, question, thought)
        return kv_loss(
            target_keys, target.values, keys, values, target.slot_mask,
            settings.kv_loss_type, settings.layerwise_std, settings.kv_parts,
        )  # fmt: skip

    def matched(self, target: Compressed, question: Prefix, thought: Prefix) -> tuple[Tensor, Tensor, Tensor]:
        """What the loss compares: the teacher's kept keys, the latents' keys and their values, each [L, B, H, M, D].

        Args:
            target: the compressed trace, M slots.
            question: the prefix of the question.
            thought: the prefix of question, `<bot>`, M latents, and anything read after them.
        """
        first = question.length + 1
        keys, values = stack_layers(thought.layers, first, first + target.keys.shape[3])
        target_keys = target.keys
        if self.settings.kv_rope == "pre":
            start = question.next_position[None, :, None, None]
            slots = torch.arange(keys.shape[3], device=keys.device).expand(keys.shape[:4])
            keys = unrotate(self.backbone.decoder, keys, start + 1 + slots)
            target_keys = unrotate(self.backbone.decoder, target_keys, start + target.indices)
        return target_keys, keys, values
