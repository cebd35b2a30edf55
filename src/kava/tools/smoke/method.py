"""Checks of the method against its formulas in float64, and against simpler implementations."""

import numpy as np
import torch

from kava.eviction import Trace, compress
from kava.losses.hidden import codi_loss
from kava.losses.kv import kv_loss
from kava.losses.token import token_cross_entropy
from kava.tools.smoke.lab import LATENTS, CheckFailedError, Lab, close_to_zero, relative, terms_apart


def eviction(_: Lab) -> str:
    """Compare the entries that R-KV keeps with those that its formulas select from the full cosine similarity matrix."""
    layers, heads, slots, lam = 2, 2, 5, 0.3
    lengths = (12, 9)
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, layers, len(lengths), heads, max(lengths), 8, generator=generator)
    importance = torch.rand(layers, len(lengths), heads, max(lengths), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    kept = compress(Trace(keys, values, importance, mask, torch.zeros(len(lengths), dtype=torch.long)), "rkv", slots, lam).indices
    wrong = 0
    for layer, example, head in np.ndindex(layers, len(lengths), heads):
        length = lengths[example]
        unit, attention = (part[layer, example, head, :length].double().numpy() for part in (keys, importance))
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        cosines = unit @ unit.T
        np.fill_diagonal(cosines, 0)
        weights = np.exp(-cosines.sum(1) / length)
        scores = lam * attention / attention.sum() + (1 - lam) * weights / weights.sum()
        wrong += len({*np.argsort(-scores)[:slots].tolist()} - {*kept[layer, example, head].tolist()})
    total = kept.numel()
    if wrong:
        raise CheckFailedError(f"{wrong} of {total} kept entries differ from the formulas")
    return f"all {total} kept entries match the formulas, {lengths[0]} and {lengths[1]} to {slots} entries"


def losses(_: Lab) -> str:
    """Compare cross-entropy, L_CODI and L_KV with their formulas."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = 2 * torch.randn(6, 9, generator=generator), torch.randint(9, (6,), generator=generator)
    teacher, student = 1.5 * torch.randn(2, 3, 1, 16, generator=generator)
    cache = 1.5 * torch.randn(4, 3, 1, 2, 5, 4, generator=generator)
    ours = [
        token_cross_entropy(logits, labels, torch.zeros(6, dtype=torch.long), 1),
        codi_loss(teacher, student, "smooth_l1", True),
        kv_loss(cache[0], cache[1], cache[2], cache[3], torch.ones(1, 5, dtype=torch.bool), "smooth_l1", True),
    ]
    rows, chosen = logits.double().numpy(), labels.numpy()
    pairs = [(t.double().numpy(), s.double().numpy()) for t, s in zip(teacher, student, strict=True)]
    layers = [(t.double().numpy(), s.double().numpy()) for part in (0, 1) for t, s in zip(cache[part], cache[part + 2], strict=True)]
    formulas = [
        np.mean(np.log(np.exp(rows).sum(1)) - rows[np.arange(6), chosen]),
        np.mean([_smooth_l1(t - s) / t.std() for t, s in pairs]),
        np.mean([_smooth_l1((t - s) / t.std()) for t, s in layers]),
    ]
    values = [float(value[0]) for value in ours]
    # Not Python's max, which passes over NaN.
    difference = np.max([abs(own - expected) / expected for own, expected in zip(values, formulas, strict=True)])
    return close_to_zero(float(difference), 1e-5, "CE {:.4f}, L_CODI {:.4f}, L_KV {:.4f} against the formulas".format(*values))


def _smooth_l1(residual: np.ndarray) -> float:
    size = np.abs(residual)
    return float(np.where(size < 1, size**2 / 2, size - 0.5).mean())


def training_losses(lab: Lab) -> str:
    """Compare the losses of the training step with those of separate full forward passes."""
    from kava.tools.bench.naive import naive_losses

    model, batch = lab.trained.model, lab.batch
    with torch.no_grad():
        difference = terms_apart(model.losses(batch), naive_losses(model, batch))
    return close_to_zero(difference, 1e-4, "shared question against separate full passes")


def padding(lab: Lab) -> str:
    """Compare the losses of each example in a padded batch with its losses alone."""
    model = lab.trained.model
    with torch.no_grad():
        together = model.losses(lab.batch)
        alone = [model.losses(lab.batch_of([problem])) for problem in lab.problems]
    rows = [{name: values[row : row + 1] for name, values in together.items()} for row in range(len(alone))]
    difference = np.max([terms_apart(row, terms) for row, terms in zip(rows, alone, strict=True)])
    return close_to_zero(float(difference), 1e-4, f"{len(alone)} examples in a batch against alone")


def jacobi(lab: Lab) -> str:
    """Compare T = M parallel Jacobi iterations with M latents generated sequentially."""
    from kava.model.latents import think_parallel, think_sequential

    model, batch = lab.trained.model, lab.batch
    with torch.no_grad():
        question = model.backbone.read(batch.question_ids, batch.question_mask).prefix
        sequential = think_sequential(model.backbone, question, model.projection, LATENTS).hidden
        # Each pass has all latents: else T = M passes of one latent each would be the sequential ones.
        parallel, fewer = (
            think_parallel(model.backbone, question, model.projection, LATENTS, t, keep_trajectory=True).hidden for t in (LATENTS, 1)
        )
    if not relative(fewer, sequential) >= 1e-3:
        raise CheckFailedError("one iteration gives the same as all of them: the latents do not depend on each other")
    return close_to_zero(relative(parallel, sequential), 1e-4, f"T = M = {LATENTS} against sequential latents")
