"""`rkv_original` as R-KV's own code does it, from queries and keys to kept entries, against plain loops."""

from typing import Any

import pytest
import torch
from pytest import MonkeyPatch

from helpers.checks import check_batching
from helpers.tiny import BACKENDS, LAYERS, make_batch, make_examples, tiny_model
from kava.cache import attention
from kava.config import build_config
from kava.errors import UserError
from kava.eviction import Trace, compress
from kava.eviction.rkv_original import rkv_original
from kava.eviction.trace import Options
from oracles import naive

M, STEPS = 11, (2, 9, 4, 12)


@pytest.mark.parametrize("attn", BACKENDS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_from_queries_and_keys_to_kept_entries(kind: str, attn: str, monkeypatch: MonkeyPatch) -> None:
    """Queries and keys as transformers hands them to attention, of every example of a padded batch."""
    model = tiny_model(kind, attn, spread=0.3, eviction="rkv_original")
    seen: dict[int, tuple[torch.Tensor, torch.Tensor, float]] = {}
    plain = attention._record

    def spy(recorder: Any, module: Any, query: torch.Tensor, key: torch.Tensor, mask: Any, scaling: float, *rest: Any) -> None:
        seen[module.layer_idx] = query, key, scaling
        plain(recorder, module, query, key, mask, scaling, *rest)

    monkeypatch.setattr(attention, "_record", spy)
    batch = make_batch(model, make_examples(4, steps=STEPS), M)
    question, _ = model.think(batch.question_ids, batch.question_mask, M)
    _, trace = model.read_teacher(question, batch, keep_hidden=False)
    kept = model.compressed(trace, M)
    first, heads = batch.question_ids.shape[1], trace.keys.shape[2]
    counts = trace.mask.sum(-1).tolist()
    assert max(counts) > M > min(counts)
    for b, count in enumerate(counts):
        for layer in range(LAYERS):
            query, key, scaling = seen[layer]
            groups = query[b].double().unflatten(0, (heads, -1))
            for head in range(heads):
                keys = key[b, head, first : first + count].double().tolist()
                window = groups[head, :, max(count - 8, 0) : count].transpose(0, 1).tolist()
                importance = naive.window_importance(window, keys[: max(count - 8, 0)], scaling)
                torch.testing.assert_close(trace.importance[layer, b, head, : len(importance)].double(), torch.tensor(importance).double())
                assert not trace.importance[layer, b, head, len(importance) :].any()
                chosen = naive.select(naive.rkv_original(importance, keys), M)
                assert kept.indices[layer, b, head, : len(chosen)].tolist() == chosen
                assert set(range(max(count - 8, 0), count)) <= set(chosen)


def test_by_hand() -> None:
    """Ten entries, so two candidates; keys a, b, then eight times c, all orthogonal."""
    keys = torch.eye(3).repeat_interleave(torch.tensor([1, 1, 8]), dim=0).view(1, 1, 1, 10, 3)
    importance = torch.tensor([0.25, 0.75] + [9.0] * 8).view(1, 1, 1, 10)
    trace = Trace(keys, keys, importance, torch.ones(1, 10, dtype=torch.bool), torch.zeros(1, dtype=torch.long))
    scores = rkv_original(trace, Options(9))[0, 0, 0]
    # Columns: a and b are like nothing; entries of c have seven like them, of which the last one is spared by each row but its own.
    means = torch.tensor([0.0, 0.0] + [7.0] * 6 + [6.0, 0.0]) / 10
    redundant = means.softmax(0)
    assert scores[:2].tolist() == pytest.approx((0.07 * 0.75 - 0.93 * redundant[:2]).tolist(), abs=1e-7)
    assert scores[2:].tolist() == [1.0] * 8
    # Pooling made the candidates equal: the earlier one stays.
    assert compress(trace, "rkv_original", 9, 0.5).indices[0, 0, 0].tolist() == [0, *range(2, 10)]


def test_a_batch_gives_what_each_example_gets_alone() -> None:
    check_batching(tiny_model(eviction="rkv_original"), M, STEPS)


def test_a_budget_within_the_window_is_refused() -> None:
    with pytest.raises(UserError, match="rkv.eviction rkv_original always keeps the last 8 entries .* set latent.num_tokens above 8"):
        build_config({"latent": {"num_tokens": 8}, "rkv": {"eviction": "rkv_original"}}, "a test", {})
    build_config({"method": "codi", "latent": {"num_tokens": 6}, "rkv": {"eviction": "rkv_original"}}, "a test", {})
