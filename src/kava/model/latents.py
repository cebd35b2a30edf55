"""Latent reasoning: M latent tokens by parallel Jacobi iterations or one after the other (method.md, section 3)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kava.cache.prefix import Extension, Prefix
from kava.model.backbone import Backbone

Project = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Thought:
    """The outcome of latent reasoning.

    Attributes:
        prefix: question, `<bot>` and the M latents.
        hidden: last-layer hidden states of `<bot>` and the latents, [B, M + 1, E].
        trajectory: `hidden` after the prefill and after each iteration; empty unless requested.
        pending: with `defer_last`, input embeddings of the last latent pass, which was not run, [B, n, E]. They are run together with the
            answer, on which they do not depend; `prefix` ends before them, and `hidden` is that of the pass before.
        earlier: with `keep_trajectory`, `prefix` after each Jacobi iteration but the last.
    """

    prefix: Prefix
    hidden: Float[Tensor, "B M1 E"]
    trajectory: tuple[Tensor, ...] = ()
    pending: Float[Tensor, "B n E"] | None = None
    earlier: tuple[Prefix, ...] = ()


def think_parallel(
    backbone: Backbone, question: Prefix, project: Project, num_latents: int, num_iterations: int, *, keep_trajectory: bool = False
) -> Thought:
    """T Jacobi iterations over M latents: latent i's next input is the projection of hidden state i - 1.

    Latents that cannot change the outcome are not run. After t iterations the first t latents are final, because their inputs no longer
    change: they stay in the cache. A hidden state becomes the input of the next latent one iteration later, so the last T - t latents
    of pass t would not be used. With T = M one latent is left per pass, which is sequential generation. More than M iterations change
    nothing.

    Args:
        backbone: the language model.
        question: prefix of the question.
        project: hidden state -> input embedding.
        num_latents: M.
        num_iterations: T; 0 uses the latents of the prefill as they are.
        keep_trajectory: run and keep all M latents in every iteration.
    """
    tail = parallel_tail(backbone, num_latents, num_iterations, len(question.mask), keep_trajectory=keep_trajectory)
    run = backbone.extend(question, tail)
    return iterate(backbone, run, project, num_latents, num_iterations, keep_trajectory=keep_trajectory)


def parallel_tail(
    backbone: Backbone, num_latents: int, num_iterations: int, batch: int, *, keep_trajectory: bool = False
) -> Float[Tensor, "B M1 E"]:
    """Input embeddings of `<bot>` and the copies of `<latent>` that the prefill needs: M - T, or all M."""
    bot, _, latent = backbone.special_embeddings()
    copies = _prefilled(num_latents, num_iterations, keep_trajectory)
    return torch.stack([bot, *[latent] * copies]).expand(batch, -1, -1)


def iterate(
    backbone: Backbone,
    prefill: Extension,
    project: Project,
    num_latents: int,
    num_iterations: int,
    *,
    keep_trajectory: bool = False,
    defer_last: bool = False,
) -> Thought:
    """Run the Jacobi iterations after a prefill that ended with `parallel_tail` of the same arguments; see `think_parallel`."""
    iterations = min(num_iterations, num_latents)
    prefix, hidden = prefill.prefix, prefill.hidden[:, -(_prefilled(num_latents, num_iterations, keep_trajectory) + 1) :]
    trajectory, earlier = [hidden], []
    for final in range(iterations):
        if keep_trajectory and final:
            earlier.append(prefix)
        last = num_latents if keep_trajectory else num_latents - iterations + final + 1
        anchor = prefix.shortened(hidden.shape[1] - 1 - final, hidden[:, final : final + 1])
        inputs = project(hidden[:, final:last])
        if defer_last and final == iterations - 1:
            return Thought(anchor, hidden, pending=inputs, earlier=tuple(earlier))
        run = backbone.extend(anchor, inputs)
        prefix, hidden = run.prefix, torch.cat([hidden[:, : final + 1], run.hidden], dim=1)
        if keep_trajectory:
            trajectory.append(hidden)
    return Thought(prefix, hidden, tuple(trajectory) if keep_trajectory else (), earlier=tuple(earlier))


def _prefilled(num_latents: int, num_iterations: int, keep_trajectory: bool) -> int:
    """Number of latents in the prefill."""
    return num_latents if keep_trajectory else max(num_latents - num_iterations, 0)


def think_sequential(backbone: Backbone, question: Prefix, project: Project, num_latents: int) -> Thought:
    """M latents one after the other (CODI, Coconut): each input is the projection of the hidden state just before it."""
    run = backbone.extend(question, sequential_tail(backbone, len(question.mask)))
    return follow(backbone, run, project, num_latents)


def sequential_tail(backbone: Backbone, batch: int) -> Float[Tensor, "B 1 E"]:
    """Input embedding of `<bot>`, the tail of the prefill."""
    return backbone.special_embeddings()[:1].expand(batch, -1, -1)


def follow(
    backbone: Backbone,
    prefill: Extension,
    project: Project,
    num_latents: int,
    *,
    mask: Bool[Tensor, "B M"] | None = None,
    defer_last: bool = False,
) -> Thought:
    """Run the sequential latents after a prefill that ended with `<bot>`; see `think_sequential`.

    With `mask`, each example has only its first latents. All are run, and nothing that follows sees the others. The last pass is not
    deferred then: in the pass of the answer, padding may only come last.
    """
    prefix, hidden = prefill.prefix, [prefill.hidden[:, -1:]]
    for latent in range(num_latents):
        inputs = project(hidden[-1])
        if defer_last and mask is None and latent == num_latents - 1:
            return Thought(prefix, torch.cat(hidden, dim=1), pending=inputs)
        run = backbone.extend(prefix, inputs, None if mask is None else mask[:, latent : latent + 1])
        prefix = run.prefix
        hidden.append(run.hidden)
    return Thought(prefix, torch.cat(hidden, dim=1))
