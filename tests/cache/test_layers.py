"""Caches as plain tensors: in and out of transformers' cache, cut and stacked, without writing into what is shared."""

import torch

from kava.cache.layers import KVLayers, cache_bytes, from_dynamic_cache, slice_layers, stack_layers, to_dynamic_cache


def make_layers(layers: int = 2, length: int = 5) -> KVLayers:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        (torch.randn(1, 2, length, 4, generator=generator), torch.randn(1, 2, length, 4, generator=generator)) for _ in range(layers)
    )


def test_a_cache_comes_back_as_the_tensors_it_was_made_of() -> None:
    layers = make_layers()
    for pair, expected in zip(from_dynamic_cache(to_dynamic_cache(layers)), layers, strict=True):
        assert pair[0] is expected[0]
        assert pair[1] is expected[1]


def test_an_update_adds_entries_and_leaves_the_given_tensors_alone() -> None:
    layers, more = make_layers(), make_layers(length=2)
    before = [tensor.clone() for pair in layers for tensor in pair]
    cache = to_dynamic_cache(layers)
    for index, (keys, values) in enumerate(more):
        cache.update(keys, values, index)
    for longer, pair, added in zip(from_dynamic_cache(cache), layers, more, strict=True):
        assert torch.equal(longer[0], torch.cat([pair[0], added[0]], 2))
        assert torch.equal(longer[1], torch.cat([pair[1], added[1]], 2))
    assert all(torch.equal(tensor, copy) for tensor, copy in zip((t for pair in layers for t in pair), before, strict=True))


def test_an_empty_cache_takes_its_first_entries_as_they_are() -> None:
    keys, values = make_layers(1)[0]
    cache = to_dynamic_cache(())
    cache.update(keys, values, 0)
    assert from_dynamic_cache(cache)[0][0] is keys


def test_slices_and_stacks_are_the_entries_between_start_and_stop() -> None:
    layers = make_layers()
    keys, values = stack_layers(layers, 1, 4)
    assert keys.shape == values.shape == (2, 1, 2, 3, 4)
    for index, (part_keys, part_values) in enumerate(slice_layers(layers, 1, 4)):
        assert torch.equal(part_keys, layers[index][0][:, :, 1:4])
        assert torch.equal(keys[index], part_keys)
        assert torch.equal(values[index], part_values)


def test_a_cache_s_size_in_bytes() -> None:
    assert cache_bytes(make_layers()) == 2 * 2 * (2 * 5 * 4) * 4
    assert cache_bytes(()) == 0
