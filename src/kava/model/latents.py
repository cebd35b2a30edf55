"""Latent reasoning: M latent tokens by parallel Jacobi iterations or one after the other (method.md, section 3)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kava.model.backbone import Backbone, Extension, Prefix

Project = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Thought:
    """The outcome of latent reasoning.

    Attributes:
        prefix: question, `<bot>` and the M latents.
        hidden: last-layer hidden states of `<bot>` and the latents, [B, M + 1, E].
        trajectory: the same after the prefill and after each iteration, where asked for.
    """

    prefix: Prefix
    hidden: Float[Tensor, "B M1 E"]
    trajectory: tuple[Tensor, ...] = ()


def think_parallel(
    backbone: Backbone, question: Prefix, project: Project, num_latents: int, num_iterations: int, *, keep_trajectory: bool = False
) -> Thought:
    """T Jacobi iterations over M latents: latent i's next input is the projection of hidden state i - 1.

    After t iterations the first t latents are final, because their inputs no longer change: they stay in the cache and
    are not run again. More than M iterations change nothing.

    Args:
        backbone: the language model.
        question: prefix of the question.
        project: hidden state -> input embedding.
        num_latents: M.
        num_iterations: T; 0 uses the latents of the prefill as they are.
        keep_trajectory: keep the hidden states of every iteration.
    """
    run = backbone.extend(question, parallel_tail(backbone, num_latents, len(question.mask)))
    return iterate(backbone, run, project, num_latents, num_iterations, keep_trajectory=keep_trajectory)


def parallel_tail(backbone: Backbone, num_latents: int, batch: int) -> Float[Tensor, "B M1 E"]:
    """Input embeddings of `<bot>` and M copies of `<latent>`, the tail of the prefill."""
    bot, _, latent = backbone.special_embeddings()
    return torch.stack([bot, *[latent] * num_latents]).expand(batch, -1, -1)


def iterate(
    backbone: Backbone, prefill: Extension, project: Project, num_latents: int, num_iterations: int, *, keep_trajectory: bool = False
) -> Thought:
    """The Jacobi iterations after a prefill that ended in `<bot>` and M latents; see `think_parallel`."""
    prefix, hidden = prefill.prefix, prefill.hidden[:, -(num_latents + 1) :]
    trajectory = [hidden]
    for final in range(min(num_iterations, num_latents)):
        anchor = prefix.shortened(num_latents - final, hidden[:, final : final + 1])
        run = backbone.extend(anchor, project(hidden[:, final:-1]))
        prefix, hidden = run.prefix, torch.cat([hidden[:, : final + 1], run.hidden], dim=1)
        if keep_trajectory:
            trajectory.append(hidden)
    return Thought(prefix, hidden, tuple(trajectory) if keep_trajectory else ())


def think_sequential(backbone: Backbone, question: Prefix, project: Project, num_latents: int) -> Thought:
    """M latents one after the other (CODI, Coconut): each input is the projection of the hidden state just before it."""
    run = backbone.extend(question, sequential_tail(backbone, len(question.mask)))
    return follow(backbone, run, project, num_latents)


def sequential_tail(backbone: Backbone, batch: int) -> Float[Tensor, "B 1 E"]:
    """Input embedding of `<bot>`, the tail of the prefill."""
    return backbone.special_embeddings()[:1].expand(batch, -1, -1)


def follow(backbone: Backbone, prefill: Extension, project: Project, num_latents: int) -> Thought:
    """The sequential latents after a prefill that ended in `<bot>`; see `think_sequential`."""
    prefix, hidden = prefill.prefix, [prefill.hidden[:, -1:]]
    for _ in range(num_latents):
        run = backbone.extend(prefix, project(hidden[-1]))
        prefix = run.prefix
        hidden.append(run.hidden)
    return Thought(prefix, torch.cat(hidden, dim=1))
