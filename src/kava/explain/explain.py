"""Explain one checkpoint: a few questions in detail, and statistics over many questions.

explanation = explain(trained.reasoner(), config, examples, Options(checkpoint="outputs/mini/best_checkpoint"))
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kava.config import Config
from kava.data.answer_types import same_answer
from kava.data.collate import build_collator
from kava.data.example import Example
from kava.data.fingerprint import fingerprint
from kava.errors import UserError
from kava.explain.answer_attention import answer_attention
from kava.explain.caches import CacheView, compare_caches, mean_cosines
from kava.explain.convergence import convergence
from kava.explain.intermediate import intermediate_results
from kava.explain.intervene import interventions
from kava.explain.questions import readable, with_trace
from kava.explain.readout import read_latents
from kava.explain.record import Attention, Explanation, Kept, QuestionView, Similarity
from kava.generate import Reasoner
from kava.methods import WITH_LATENTS
from kava.model.backbone import evaluating
from kava.model.suitability import can_unrotate
from kava.runtime.provenance import collect


@dataclass(frozen=True)
class Options:
    """Options of an explanation.

    Attributes:
        checkpoint: path of the checkpoint, for the record.
        data: where the examples came from; None for a user's own questions.
        details: number of examples to show in detail: a user's own questions first, then those that have a trace to compress.
        top_k: number of tokens to decode from each latent.
        max_new_tokens: maximum number of tokens per answer.
        say: called with progress messages.
    """

    checkpoint: str
    data: str | None = None
    details: int = 4
    top_k: int = 5
    max_new_tokens: int = 64
    say: Callable[[str], None] = print


def explain(reasoner: Reasoner, config: Config, examples: Sequence[Example], options: Options) -> Explanation:
    """Run every analysis that the method and the examples allow; see `Explanation`.

    Raises:
        UserError: the method has no latents, a user's own question is empty or too long, or all questions of a data set are.
    """
    started, method = time.perf_counter(), reasoner.model.method
    if not method.uses_latents:
        raise UserError(f"method {method.name} has no latents to explain; give a checkpoint of {WITH_LATENTS}")
    reasoner.model.eval()
    batch_size = config.evaluation.batch_size
    given, examples, notes = len(examples), readable(reasoner, examples, config), []
    if len(examples) < given:
        notes.append(f"{given - len(examples)} of {given} questions left out: empty, or longer than {config.dataset.max_length} tokens")
    options.say(f"looking at {min(len(examples), options.details)} questions one by one")
    shown = worth_showing(examples, config.dataset.drop_last_step)[: options.details]
    views = [_view(reasoner, config, example, options) for example in shown]
    measured = with_gold(examples)
    if method.latents == "parallel":
        options.say(f"convergence over {len(measured)} questions")
        settled = convergence(reasoner, measured, batch_size, options.max_new_tokens)
    else:
        settled = None
        notes.append(f"no convergence: {method.name} thinks its latents one after the other, without iterations")
    effects = None
    if len(measured) < 2:
        notes.append("no interventions: a mean or a swap needs at least two questions")
    elif not can_unrotate(reasoner.model.backbone):
        notes.append("no interventions: keys of this model cannot be moved to another position")
    else:
        options.say(f"interventions on {reasoner.num_latents} latents over {len(measured)} questions")
        effects = interventions(reasoner, measured, batch_size, options.max_new_tokens)
    similarity = None
    if not method.teacher:
        notes.append(f"no teacher's cache to compare with: {method.name} has none")
    else:
        if without := sum(view.kept is None for view in views):
            notes.append(f"no kept tokens for {without} of the {len(views)} questions shown: there is no trace with a step to compress")
        similarity = mean_similarity(reasoner, config, examples)
        if similarity is None:
            notes.append("no mean similarity: no question of a data set has a trace with a step to compress, or a cosine is not finite")
    return Explanation(
        method=method.name,
        num_latents=reasoner.num_latents,
        num_iterations=reasoner.num_iterations,
        checkpoint=options.checkpoint,
        data=options.data,
        notes=notes,
        questions=views,
        mean_similarity=similarity,
        intermediate=intermediate_results(reasoner, measured, batch_size),
        convergence=settled,
        interventions=effects,
        provenance=_provenance(config, examples, time.perf_counter() - started),
    )


def with_gold(examples: Sequence[Example]) -> list[Example]:
    """Return the examples to measure on: those with a gold answer if there are at least two, so that an accuracy is defined."""
    known = [example for example in examples if example.answer]
    return known if len(known) >= 2 else list(examples)


def worth_showing(examples: Sequence[Example], drop_last_step: bool) -> list[Example]:
    """Sort a user's own questions first, then examples with a trace to compress; the others have no kept tokens to show."""

    def rank(example: Example) -> int:
        if not example.answer:
            return 0
        return 1 if len(example.steps) > int(drop_last_step) else 2

    return sorted(examples, key=rank)


def _provenance(config: Config, examples: Sequence[Example], seconds: float) -> dict[str, Any]:
    """Return the provenance as in a result file: configuration and seed, fingerprint of the data, code, machine and command."""
    known = {"seed": config.training.seed, "data_fingerprint": fingerprint(examples), "config": config.to_dict()}
    return collect(wall_seconds=seconds) | known


def mean_similarity(reasoner: Reasoner, config: Config, examples: Sequence[Example]) -> Similarity | None:
    """Return cosines averaged over all examples that have a trace; None if none has one, or if a cosine is not finite.

    The model's mode (training or evaluation) is restored.
    """
    encoded = reasoner.builder.encode_all([example for example in examples if example.steps and example.answer])
    encoded = [example for example in encoded if example.cot(config.dataset.drop_last_step)]
    if not encoded:
        return None
    build, size, device = (
        build_collator(config, reasoner.builder, reasoner.num_latents),
        config.evaluation.batch_size,
        reasoner.model.backbone.special_ids.device,
    )
    batches = (build.collate(encoded[start : start + size]).to(device) for start in range(0, len(encoded), size))
    with evaluating(reasoner.model):
        keys, values = mean_cosines(reasoner.model, batches)
    if not (keys.isfinite().all() and values.isfinite().all()):
        return None
    return Similarity(keys=keys.tolist(), values=values.tolist())


@torch.inference_mode()
def _view(reasoner: Reasoner, config: Config, example: Example, options: Options) -> QuestionView:
    generation = reasoner.generate([example.question], max_new_tokens=options.max_new_tokens)[0]
    readout = read_latents(reasoner, example.question, options.top_k)
    attention = answer_attention(reasoner, reasoner.builder.question_ids(example.question), generation.token_ids)
    kept = similarity = None
    if reasoner.model.method.teacher:
        kept, similarity = _caches(reasoner, config, example, options)
    return QuestionView(
        question=example.question,
        gold=example.answer or None,
        prediction=generation.answer,
        correct=same_answer(generation.answer, example.answer, example.answer_type) if example.answer else None,
        tokens=readout.tokens,
        probabilities=readout.probabilities,
        attention=Attention(latents=attention.latents.tolist(), parts={name: part.tolist() for name, part in attention.parts.items()}),
        kept=kept,
        similarity=similarity,
    )


def _caches(reasoner: Reasoner, config: Config, example: Example, options: Options) -> tuple[Kept | None, Similarity | None]:
    """Return kept tokens and cosines for the example's own trace, or else for the one that the model writes.

    A model that was trained on traces without their last step writes such traces: nothing is left out of them.
    """
    traced = example if example.steps and example.answer else with_trace(reasoner, example, options.max_new_tokens)
    if traced is None:
        return None, None
    encoded = reasoner.builder.encode(traced)
    build = build_collator(config, reasoner.builder, reasoner.num_latents)
    build.drop_last_step &= traced is example
    trace = encoded.cot(build.drop_last_step)
    if not trace:
        return None, None
    batch = build.collate([encoded]).to(reasoner.model.backbone.special_ids.device)
    view = compare_caches(reasoner.model, batch)
    filled = int(view.slot_mask.sum())
    whole = encoded.cot(drop_last_step=False)
    kept = Kept(
        tokens=[_text(reasoner, token) for token in trace],
        left_out=[_text(reasoner, token) for token in whole[len(trace) :]],
        written_by="data set" if traced is example else "model",
        eviction=reasoner.model.settings.eviction,
        positions=view.indices[:, 0, :, :filled].tolist(),
        share=_share(view, filled, len(trace)),
    )
    return kept, Similarity(keys=view.keys[:, 0, :, :filled].tolist(), values=view.values[:, 0, :, :filled].tolist())


def _share(view: CacheView, filled: int, length: int) -> list[float]:
    """Return the fraction of all layers and heads that kept each token of a trace."""
    indices = view.indices[:, 0, :, :filled]
    heads = indices.shape[0] * indices.shape[1]
    share: list[float] = (indices.flatten().bincount(minlength=length) / heads).tolist()
    return share


def _text(reasoner: Reasoner, token: int) -> str:
    return str(reasoner.builder.tokenizer.decode([token]))
