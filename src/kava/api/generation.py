"""The interface of transformers' `generate` for decoding after the latents: GenerationConfig, streamer, token ids."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kava.errors import UserError, at_least
from kava.generate import Reasoner

# Settings that are applied, and settings that are accepted but have no effect.
CHOOSING = ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p")
IGNORED = (
    "pad_token_id",
    "eos_token_id",
    "bos_token_id",
    "transformers_version",
    "use_cache",
    "_from_model_config",
)


@torch.no_grad()
def generate(
    reasoner: Reasoner,
    inputs: list[str] | Tensor,
    generation_config: Any,
    defaults: dict[str, Any],
    settings: dict[str, Any],
    attention_mask: Tensor | None,
    streamer: Any,
    use_latent: bool,
) -> Tensor:
    """See `kava.Model.generate`."""
    stated = {} if generation_config is None else generation_config.to_diff_dict()
    asked = defaults | {name: value for name, value in [*stated.items(), *settings.items()] if value is not None}
    unknown = [name for name in asked if name not in CHOOSING + IGNORED]
    if unknown:
        raise UserError(f"generate: {unknown[0]} does not apply to decoding after latents; leave it out ({', '.join(CHOOSING)} do)")
    questions = _rows(inputs, attention_mask, reasoner) if isinstance(inputs, Tensor) else reasoner.builder.all_question_ids(inputs)
    if not questions:
        raise UserError("generate: there is no question; give at least one")
    if streamer is not None and len(questions) != 1:
        raise UserError(f"generate: a streamer shows one answer, and {len(questions)} questions were given")
    limit = int(asked["max_new_tokens"])
    at_least(1, max_new_tokens=limit)
    reasoner.require_room(questions, limit, use_latent)
    prefix, logits, _ = reasoner.start(questions, use_latent, limit)
    written: list[list[int]] = [[] for _ in questions]
    if streamer is not None:
        streamer.put(torch.tensor(questions))
    for rows, tokens, _ in reasoner.tokens(prefix, logits, limit, _sampler(asked)):
        for row, token in zip(rows, tokens.tolist(), strict=True):
            written[row].append(token)
        if streamer is not None:
            streamer.put(tokens.cpu())
    if streamer is not None:
        streamer.end()
    pad = reasoner.builder.tokenizer.pad_token_id
    return pad_sequence([torch.tensor(ids, dtype=torch.long) for ids in written], batch_first=True, padding_value=pad).to(logits.device)


def _rows(ids: Tensor, mask: Tensor | None, reasoner: Reasoner) -> list[list[int]]:
    if ids.ndim != 2 or (mask is not None and mask.shape != ids.shape):
        given = f"{tuple(ids.shape)}" if mask is None else f"{tuple(ids.shape)} with attention_mask {tuple(mask.shape)}"
        raise UserError(f"generate: the shape of the token ids is {given}; give [B, S] for both, such as ids[None] for one question")
    real, vocabulary = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool(), len(reasoner.builder.tokenizer)
    if not ((ids[real] >= 0) & (ids[real] < vocabulary)).all():
        raise UserError(f"generate: a token id is not one of the tokenizer's; give ids from 0 to {vocabulary - 1}")
    return [row[kept].tolist() for row, kept in zip(ids, real, strict=True)]


def _sampler(asked: dict[str, Any]) -> Any:
    """Return a function logits [B, V] -> tokens [B] that applies transformers' logits processors; None for greedy decoding."""
    if not asked.get("do_sample"):
        return None
    from transformers import GenerationConfig
    from transformers.generation import logits_process

    # GenerationConfig checks the ranges.
    config = GenerationConfig(**{name: asked[name] for name in CHOOSING if name in asked})
    made = []
    for name, kind, neutral in (
        ("temperature", "TemperatureLogitsWarper", 1),
        ("top_k", "TopKLogitsWarper", 0),
        ("top_p", "TopPLogitsWarper", 1),
        ("min_p", "MinPLogitsWarper", 0),
        ("typical_p", "TypicalLogitsWarper", 1),
    ):
        value = getattr(config, name)
        # Some of the classes refuse a value that changes nothing.
        if value is not None and value != neutral:
            try:
                made.append(getattr(logits_process, kind)(value))
            except ValueError as error:
                raise UserError(f"generate: {name} {value}: {error}") from None

    def choose(logits: Tensor) -> Tensor:
        scores = logits.float()
        for processor in made:
            scores = processor(None, scores)
        return torch.multinomial(scores.softmax(-1), 1)[:, 0]

    return choose
