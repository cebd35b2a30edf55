"""How alike the caches of student and teacher are, entry by entry."""

from dataclasses import replace

import pytest
import torch

from helpers.explaining import EXAMPLES, LATENTS, config, make
from helpers.tiny import LAYERS
from kava.data.collate import build_collator
from kava.explain.caches import compare_caches, cosines, mean_cosines


def test_cosines_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 2, 4, 5, generator=generator) for _ in range(2))
    found = cosines(student, teacher)
    for layer, example, i, j in [(0, 0, 0, 0), (1, 2, 3, 1), (0, 1, 2, 3)]:
        heads = [
            torch.nn.functional.cosine_similarity(student[layer, example, h, i].double(), teacher[layer, example, h, j].double(), dim=0)
            for h in range(2)
        ]
        assert float(found[layer, example, i, j]) == pytest.approx(float(sum(heads) / 2), abs=1e-6)
    assert torch.allclose(cosines(student, student).diagonal(dim1=-2, dim2=-1), torch.ones(2, 3, 4))


def test_mean_cosines_count_filled_slots_only() -> None:
    reasoner = make(latents=12)
    # This random model multiplies rounding by a thousand: in double precision what is left is the means.
    reasoner.model.double()
    encoded = reasoner.builder.encode_all([example for example in EXAMPLES if len(example.steps) > 1])
    build = build_collator(config(), reasoner.builder, reasoner.num_latents)
    alone = [compare_caches(reasoner.model, build.collate([example])) for example in encoded]
    keys, values = mean_cosines(reasoner.model, [build.collate(encoded[:2]), build.collate(encoded[2:])])
    widest = max(min(len(example.cot(True)), 12) for example in encoded)
    assert keys.shape == values.shape == (LAYERS, 12, widest)
    for slot in range(widest):
        filled = [view.keys[:, 0, :, slot] for view in alone if view.slot_mask[0, slot]]
        assert torch.allclose(keys[..., slot], torch.stack(filled).mean(0), atol=1e-5)


@pytest.mark.parametrize("kv_rope", ["post", "pre"])
def test_caches_of_a_batch_are_those_of_each_example_alone(kv_rope: str) -> None:
    reasoner = make()
    reasoner.model.settings = replace(reasoner.model.settings, num_iterations=2, kv_rope=kv_rope)
    encoded = reasoner.builder.encode_all([example for example in EXAMPLES if len(example.steps) > 1])
    build = build_collator(config(), reasoner.builder, reasoner.num_latents)
    together = compare_caches(reasoner.model, build.collate(encoded))
    for index, example in enumerate(encoded):
        alone = compare_caches(reasoner.model, build.collate([example]))
        filled = min(len(example.cot(True)), LATENTS)
        assert torch.equal(together.indices[:, index, :, :filled], alone.indices[:, 0, :, :filled])
        assert torch.allclose(together.keys[:, index, :, :filled], alone.keys[:, 0, :, :filled], atol=5e-5)
        assert torch.allclose(together.values[:, index, :, :filled], alone.values[:, 0, :, :filled], atol=5e-5)
