"""A cache of fixed size: written in place where the shared slot says."""

import torch

from kava.cache.static import static_cache


def test_entries_go_to_the_slot_and_the_buffers_stay_where_they_are() -> None:
    keys, values = torch.ones(2, 1, 2, 4), torch.full((2, 1, 2, 3), 2.0)
    slot = torch.tensor([2])
    cache = static_cache(((keys, values),), 5, slot)
    layer = cache.layers[0]
    assert (layer.keys.shape, layer.values.shape) == ((2, 1, 5, 4), (2, 1, 5, 3))
    assert not layer.keys.any()
    layer.load(keys, values)
    place = layer.keys.data_ptr()
    for number in (7.0, 8.0):
        held, _ = layer.update(torch.full((2, 1, 1, 4), number), torch.full((2, 1, 1, 3), -number))
        slot += 1
    assert held.data_ptr() == place
    assert held[0, 0, :, 0].tolist() == [1.0, 1.0, 7.0, 8.0, 0.0]
    assert layer.values[1, 0, :, 2].tolist() == [2.0, 2.0, -7.0, -8.0, 0.0]
