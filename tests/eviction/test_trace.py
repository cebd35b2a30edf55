"""A trace: what counts as padding, and how one is cut out of a cache of transformers."""

import pytest
import torch

from helpers.tiny import tiny_model
from helpers.traces import make_trace
from kava.errors import UserError
from kava.eviction.trace import Trace, candidates

LOW = float("-inf")


def test_padding_scores_lowest_whatever_it_holds() -> None:
    trace = make_trace([2, 3], length=3, layers=1, heads=1)
    assert trace.hide_padding(torch.ones(1, 2, 1, 3)).flatten().tolist() == [1.0, 1.0, LOW, 1.0, 1.0, 1.0]
    by_position = trace.by_position(torch.tensor([[5.0, 6.0, 7.0]]))
    assert by_position.flatten().tolist() == [5.0, 6.0, LOW, 5.0, 6.0, 7.0]


def test_the_last_eight_entries_are_no_candidates() -> None:
    mask = torch.arange(11) < torch.tensor([[11], [9], [8], [0]])
    assert candidates(mask).sum(-1).tolist() == [3, 1, 0, 0]
    assert candidates(mask)[0].tolist() == [True] * 3 + [False] * 8


@torch.no_grad()
def test_a_trace_of_any_model_is_its_cache_and_the_attention_of_what_follows() -> None:
    causal_lm = tiny_model("llama", "eager").backbone.causal_lm
    output = causal_lm(input_ids=torch.arange(10, 20)[None], use_cache=True, output_attentions=True)
    trace = Trace.from_cache(output.past_key_values, output.attentions, start=3, stop=7)
    for layer, (held, attention) in enumerate(zip(output.past_key_values.layers, output.attentions, strict=True)):
        assert torch.equal(trace.keys[layer], held.keys[:, :, 3:7])
        assert torch.equal(trace.values[layer], held.values[:, :, 3:7])
        expected = attention[0, :, 7:, 3:7].mean(1).view(2, 2, 4).amax(1)
        torch.testing.assert_close(trace.importance[layer, 0], expected)
    assert trace.mask.tolist() == [[True] * 4]
    pairs = [(held.keys, held.values) for held in output.past_key_values.layers]
    mean = Trace.from_cache(pairs, output.attentions, start=3, stop=7, mask=torch.tensor([[1, 1, 0, 0]]), group_reduction="mean")
    torch.testing.assert_close(mean.importance[0, 0, :, :2], output.attentions[0][0, :, 7:, 3:5].mean(1).view(2, 2, 2).mean(1))
    assert not mean.importance[..., 2:].any()
    for start, stop in ((3, 3), (-1, 4), (3, 11)):
        with pytest.raises(UserError, match=f"the trace cannot be entries {start} to {stop} of a cache of 10"):
            Trace.from_cache(pairs, output.attentions, start=start, stop=stop)
    with pytest.raises(UserError, match="do not fit a cache of"):
        Trace.from_cache(pairs, output.attentions[:1])
    with pytest.raises(UserError, match=r"mask \(1, 10\) does not fit a trace of 1 examples and 4 entries"):
        Trace.from_cache(pairs, output.attentions, start=3, stop=7, mask=torch.ones(1, 10))


@torch.no_grad()
def test_a_model_that_shows_no_attention_is_named_with_what_shows_it() -> None:
    output = tiny_model("llama", "sdpa").backbone.causal_lm(input_ids=torch.arange(10, 20)[None], use_cache=True, output_attentions=True)
    for attentions in (output.attentions, ()):
        with pytest.raises(UserError, match="attn_implementation='eager'"):
            Trace.from_cache(output.past_key_values, attentions)
