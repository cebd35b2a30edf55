"""What a training step keeps for its backward pass: logits at labelled positions only, and on a GPU no attention matrix of any layer."""

import math
from collections import Counter

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from helpers.tiny import HIDDEN, SPECIAL_IDS, WEIGHTS, make_batch, make_examples, tiny_lm, with_lora
from kava.methods import METHODS
from kava.model.backbone import Backbone
from kava.model.kava import KavaModel, Settings
from kava.model.projection import build_projection
from kava.runtime.device import as_on_gpu

WIDE = 997  # no other size of the model is near it
LATENTS = 24


def kept_by_a_step(attn: str) -> tuple[list[Tensor], int]:
    """Everything autograd saves in one step of KaVa (weights apart), and the number of labelled tokens."""
    causal_lm = with_lora(tiny_lm("llama", attn, vocabulary=WIDE), SPECIAL_IDS)
    projection = build_projection(True, HIDDEN, causal_lm.get_input_embeddings())
    model = KavaModel(Backbone(causal_lm, SPECIAL_IDS), projection, METHODS["kava"], Settings(3, WEIGHTS))
    batch = make_batch(model, make_examples(4, steps=(8,)), num_latents=LATENTS)
    assert batch.teacher is not None
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage().data_ptr()
        if storage not in weights:
            kept[storage, tuple(tensor.shape)] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(batch)["loss"].mean()
    loss.backward()
    return list(kept.values()), batch.student.labels.numel() + batch.teacher.labels.numel()


def attention_matrices(kept: list[Tensor]) -> list[tuple[int, ...]]:
    """Shapes [B, heads, rows, columns] with several heads; keys and values end in the head size, 8."""
    return [tuple(tensor.shape) for tensor in kept if tensor.ndim == 4 and tensor.shape[1] > 1 and min(tensor.shape[2:]) > 8]


def test_nothing_of_size_vocabulary_times_all_positions_is_kept() -> None:
    kept, labelled = kept_by_a_step("sdpa")
    wide = [tensor for tensor in kept if tensor.shape and tensor.shape[-1] == WIDE]
    assert wide, "the labelled logits must be among them"
    rows = max(math.prod(tensor.shape[:-1]) for tensor in wide)
    assert rows <= labelled
    assert sum(math.prod(tensor.shape[:-1]) for tensor in wide) <= 2 * labelled


def test_no_attention_matrix_is_kept() -> None:
    """On a GPU; on a CPU those of short sequences are (`kava.cache.short_attention`)."""
    with as_on_gpu():
        kept, _ = kept_by_a_step("sdpa")
    assert not attention_matrices(kept)


def test_eager_attention_would_be_seen() -> None:
    """The check above can fail: eager attention keeps one matrix per layer and pass."""
    kept, _ = kept_by_a_step("eager")
    assert len(attention_matrices(kept)) >= 3


def test_a_pass_has_one_mask_for_all_layers() -> None:
    """torch makes an additive mask of a boolean one in every layer, and keeps each: L tensors of size S x K."""
    with as_on_gpu():
        kept, _ = kept_by_a_step("sdpa")
    masks = Counter(tuple(tensor.shape) for tensor in kept if tensor.ndim == 4 and tensor.shape[1] == 1 and min(tensor.shape[2:]) > 8)
    assert masks, "the first pass has one"
    assert max(masks.values()) == 1
