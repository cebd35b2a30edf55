"""Checks of the method against the formulas written as loops, and against plainer forms of itself."""

import math

import torch

from kava.eviction import Trace, compress
from kava.losses.hidden import codi_loss
from kava.losses.kv import kv_loss
from kava.losses.token import token_cross_entropy
from kava.tools.smoke.check import CheckFailedError, close_to_zero
from kava.tools.smoke.lab import LATENTS, Lab, relative, terms_apart

Vector = list[float]


def eviction(_: Lab) -> str:
    """R-KV's choice, entry by entry, against sums over pairs in float64."""
    layers, heads, slots, lam = 2, 2, 5, 0.3
    lengths = (12, 9)
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, layers, len(lengths), heads, max(lengths), 8, generator=generator)
    importance = torch.rand(layers, len(lengths), heads, max(lengths), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    kept = compress(Trace(keys, values, importance, mask, torch.zeros(len(lengths), dtype=torch.long)), "rkv", slots, lam).indices
    wrong = 0
    for layer in range(layers):
        for example, length in enumerate(lengths):
            for head in range(heads):
                place = (layer, example, head)
                expected = _best(keys[place][:length].double().tolist(), importance[place][:length].double().tolist(), slots, lam)
                wrong += len(set(expected) ^ set(kept[place].tolist())) // 2
    total = kept.numel()
    if wrong:
        raise CheckFailedError(f"{wrong} of {total} kept entries differ from the formulas")
    return f"all {total} kept entries as by the formulas, {lengths[0]} and {lengths[1]} to {slots} entries"


def losses(_: Lab) -> str:
    """Cross-entropy, L_CODI and L_KV against loops in float64."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = 2 * torch.randn(6, 9, generator=generator), torch.randint(9, (6,), generator=generator)
    ours = [float(token_cross_entropy(logits, labels, torch.zeros(6, dtype=torch.long), 1)[0])]
    nats = [math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True)]
    loops = [sum(nats) / len(nats)]
    teacher, student = 1.5 * torch.randn(2, 3, 1, 16, generator=generator)
    ours.append(float(codi_loss(teacher, student, "smooth_l1", True)[0]))
    pairs = [(t, s) for t, s in zip(teacher[:, 0].double().tolist(), student[:, 0].double().tolist(), strict=True)]
    loops.append(sum(_mean_distance(t, s, 1.0) / _deviation(t) for t, s in pairs) / len(pairs))
    cache = 1.5 * torch.randn(4, 3, 1, 2, 5, 4, generator=generator)
    ours.append(float(kv_loss(cache[0], cache[1], cache[2], cache[3], torch.ones(1, 5, dtype=torch.bool), "smooth_l1", True)[0]))
    flat = cache.double().flatten(2).tolist()
    layers = [(flat[part][layer], flat[part + 2][layer]) for part in (0, 1) for layer in range(3)]
    loops.append(sum(_mean_distance(t, s, _deviation(t)) for t, s in layers) / len(layers))
    difference = max(abs(a - b) / b for a, b in zip(ours, loops, strict=True))
    return close_to_zero(difference, 1e-5, f"CE {ours[0]:.4f}, L_CODI {ours[1]:.4f}, L_KV {ours[2]:.4f} against loops")


def training_losses(lab: Lab) -> str:
    """The fast step against full passes that share nothing."""
    from kava.tools.bench.naive import naive_losses

    batch = lab.batch(lab.problems[:4])
    with torch.no_grad():
        difference = terms_apart(lab.model.losses(batch), naive_losses(lab.model, batch))
    return close_to_zero(difference, 1e-4, "shared question against separate full passes")


def padding(lab: Lab) -> str:
    """Each example's losses in a padded batch against its losses alone."""
    problems = lab.problems[:4]
    with torch.no_grad():
        together = lab.model.losses(lab.batch(problems))
        alone = [lab.model.losses(lab.batch([problem])) for problem in problems]
    differences = [
        relative(together[name][row : row + 1], value)
        for row, terms in enumerate(alone)
        for name, value in terms.items()
        # A one-step problem has an empty trace, and a L_KV of exactly 0 both ways.
        if float(value.abs().max()) > 0
    ]
    return close_to_zero(max(differences), 1e-4, f"{len(problems)} examples in a batch against alone")


def jacobi(lab: Lab) -> str:
    """T = M parallel iterations against M latents one after the other."""
    from kava.model.latents import think_parallel, think_sequential

    model, batch = lab.model, lab.batch(lab.problems[:4])
    with torch.no_grad():
        question = model.backbone.read(batch.question_ids, batch.question_mask).prefix
        parallel = think_parallel(model.backbone, question, model.projection, LATENTS, LATENTS).hidden
        sequential = think_sequential(model.backbone, question, model.projection, LATENTS).hidden
        fewer = think_parallel(model.backbone, question, model.projection, LATENTS, 1).hidden
    if relative(fewer, sequential) < 1e-3:
        raise CheckFailedError("one iteration gives the same as all of them: the latents do not depend on each other")
    return close_to_zero(relative(parallel, sequential), 1e-4, f"T = M = {LATENTS} against sequential latents")


def _best(keys: list[Vector], importance: Vector, slots: int, lam: float) -> list[int]:
    """S = lambda I + (1 - lambda) R by the C x C matrix of cosines."""
    count = len(keys)

    def cosine(a: Vector, b: Vector) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    weights = [math.exp(-sum(cosine(keys[i], keys[j]) for j in range(count) if j != i) / count) for i in range(count)]
    scores = [lam * x / sum(importance) + (1 - lam) * weight / sum(weights) for x, weight in zip(importance, weights, strict=True)]
    return sorted(range(count), key=lambda i: -scores[i])[:slots]


def _deviation(values: Vector) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((x - mean) ** 2 for x in values) / len(values))


def _mean_distance(teacher: Vector, student: Vector, scale: float) -> float:
    """Mean smooth L1 of the residuals over `scale`."""
    residuals = [abs(x - y) / scale for x, y in zip(teacher, student, strict=True)]
    return sum(r * r / 2 if r < 1 else r - 0.5 for r in residuals) / len(residuals)
