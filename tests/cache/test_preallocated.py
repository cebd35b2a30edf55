"""The cache that writing goes into: the same entries as concatenation, in one place, and the prefix left as it was."""

import torch

from helpers.tiny import assert_close, make_batch, make_examples, tiny_model
from kava.cache.preallocated import GrowingLayer
from kava.model.decoding import start_decoding

ROOM = 3


def drawn(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = torch.randn(2, 4, 2, length, 5)
    return keys, values


def test_entries_are_those_of_concatenation_and_stay_where_they_are() -> None:
    torch.manual_seed(0)
    start, *later = [drawn(length) for length in (6, 1, 1, 1)]
    before = [part.clone() for part in start]
    layer = GrowingLayer(*start, ROOM)
    places = {(layer.keys.data_ptr(), layer.values.data_ptr())}
    for new in later:
        keys, values = layer.update(*new)
        places.add((keys.data_ptr(), values.data_ptr()))
    assert torch.equal(keys, torch.cat([start[0], *(new[0] for new in later)], dim=2))
    assert torch.equal(values, torch.cat([start[1], *(new[1] for new in later)], dim=2))
    assert len(places) == 1
    assert all(torch.equal(part, old) for part, old in zip(start, before, strict=True))
    assert layer.get_seq_length() == 9


def test_finished_rows_leave_and_the_room_stays() -> None:
    torch.manual_seed(0)
    start, first, second = drawn(6), drawn(1), drawn(1)
    layer = GrowingLayer(*start, ROOM)
    layer.update(*first)
    rows = torch.tensor([0, 3])
    layer.keep(rows)
    place = layer.keys.data_ptr()
    keys, _ = layer.update(second[0][rows], second[1][rows])
    assert torch.equal(keys, torch.cat([start[0], first[0], second[0]], dim=2)[rows])
    assert keys.data_ptr() == place


@torch.no_grad()
def test_writing_gives_the_logits_of_extending_and_leaves_the_prefix_alone() -> None:
    """Two writers on one prefix: the second sees nothing of the first."""
    model = tiny_model("llama")
    batch, backbone = make_batch(model, make_examples()), model.backbone
    prefix = backbone.read(batch.question_ids, batch.question_mask).prefix
    rows, tokens = torch.tensor([0, 2]), torch.arange(10, 20).view(2, 5)
    expected = prefix
    for step in tokens:
        run = backbone.extend(expected, backbone.embed(step[:, None]))
        expected = run.prefix
    for _ in range(2):
        writing = start_decoding(backbone, prefix, len(tokens))
        writing.next(tokens[0])
        writing.keep(rows)
        assert_close(writing.next(tokens[1][rows]), backbone.logits(run.hidden[:, -1])[rows])
