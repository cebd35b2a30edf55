"""Attention of the answer tokens to each latent and to the other parts of the text."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kava.cache.attention import ImportanceRecorder, recording
from kava.generate import Reasoner


@dataclass(frozen=True)
class AnswerAttention:
    """Attention probabilities, averaged over the answer tokens (prompt, number) and over the query heads of each KV head.

    Attributes:
        latents: probability per layer, KV head and latent.
        parts: probability per layer of the question, `<bot>`, the latents, and the answer itself (with `<eot>`), summed over tokens and
            averaged over heads; they add up to 1.
    """

    latents: Float[Tensor, "L H M"]
    parts: dict[str, Float[Tensor, " L"]]


@torch.inference_mode()
def answer_attention(reasoner: Reasoner, question: list[int], answer: list[int]) -> AnswerAttention:
    """Compute the latents of a question, process `<eot>` and the answer after them, and record what the answer tokens attend to.

    Args:
        reasoner: a model of a method with latents.
        question, answer: token ids; the answer as the model wrote it, after the answer prompt.
    """
    backbone = reasoner.model.backbone
    ids, mask = reasoner.pad([question])
    thought, _ = reasoner.think(ids, mask)
    tail = torch.tensor([[*reasoner.builder.prompt_ids, *answer]], device=ids.device)
    embeds = torch.cat([backbone.special_embeddings()[1:2][None], backbone.embed(tail)], dim=1)
    rows = torch.arange(1, embeds.shape[1], device=ids.device)[None]
    latents, total = thought.prefix.length, thought.prefix.length + embeds.shape[1]
    recorder = ImportanceRecorder(rows, torch.ones_like(rows, dtype=torch.bool), 0, total, "mean")
    with recording(recorder):
        backbone.extend(thought.prefix, embeds)
    attention = recorder.stacked()[:, 0]
    first = latents - reasoner.num_latents
    bounds = {"question": (0, first - 1), "<bot>": (first - 1, first), "latents": (first, latents), "answer": (latents, total)}
    parts = {name: attention[..., start:stop].sum(-1).mean(-1) for name, (start, stop) in bounds.items()}
    return AnswerAttention(attention[..., first:latents], parts)
