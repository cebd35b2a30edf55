"""Compare the KV cache of the student's latents with the teacher's compressed cache: kept entries and cosine similarities.

view = compare_caches(model, collator.collate(examples))
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from kava.data.collate import Batch
from kava.model.kava import KavaModel


@dataclass(frozen=True)
class CacheView:
    """Both caches of a batch, compared as the loss compares them (`kv_rope` included).

    Attributes:
        indices: positions of the kept entries in the trace, in time order.
        slot_mask: which slots hold an entry.
        keys: cosine of the student's latent i (row) and the kept entry j (column), mean over heads. Likewise `values`.
    """

    indices: Int[Tensor, "L B H M"]
    slot_mask: Bool[Tensor, "B M"]
    keys: Float[Tensor, "L B M M"]
    values: Float[Tensor, "L B M M"]


@torch.no_grad()
def compare_caches(model: KavaModel, batch: Batch) -> CacheView:
    """Run student and teacher on a batch and compare their caches.

    Raises:
        ValueError: the method has no latents, or the batch has no teacher trace.
    """
    if not model.method.uses_latents or batch.teacher is None:
        raise ValueError(f"method {model.method.name} has no pair of caches to compare")
    question, thought = model.think(batch.question_ids, batch.question_mask, batch.num_latents)
    _, trace = model.read_teacher(question, batch, keep_hidden=False)
    target = model.compressed(trace, batch.num_latents)
    target_keys, keys, values = model.matched(target, question, thought.prefix)
    return CacheView(target.indices, target.slot_mask, cosines(keys, target_keys), cosines(values, target.values))


def cosines(student: Float[Tensor, "L B H M D"], teacher: Float[Tensor, "L B H M D"]) -> Float[Tensor, "L B M M"]:
    """Return the cosine of every student entry with every teacher entry of the same head, averaged over heads."""
    return (normalize(student.float(), dim=-1) @ normalize(teacher.float(), dim=-1).transpose(-1, -2)).mean(2)


def mean_cosines(model: KavaModel, batches: Iterable[Batch]) -> tuple[Float[Tensor, "L M m"], Float[Tensor, "L M m"]]:
    """Return the cosines of keys and of values, averaged over the examples that fill a slot; slots that no example fills are dropped.

    Raises:
        ValueError: as in `compare_caches`, or there is no batch.
    """
    views = [compare_caches(model, batch) for batch in batches]
    if not views:
        raise ValueError("no example to compare caches on")
    filled = torch.stack([view.slot_mask.sum(0) for view in views]).sum(0)
    width = int((filled > 0).sum())
    keys = torch.stack([_over_filled(view.keys, view.slot_mask) for view in views]).sum(0)
    values = torch.stack([_over_filled(view.values, view.slot_mask) for view in views]).sum(0)
    return keys[..., :width] / filled[:width], values[..., :width] / filled[:width]


def _over_filled(cosine: Float[Tensor, "L B M M"], slot_mask: Bool[Tensor, "B M"]) -> Float[Tensor, "L M M"]:
    return (cosine * slot_mask[None, :, None, :]).sum(1)
