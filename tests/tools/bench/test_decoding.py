"""Cached and recomputed decoding write the same; differences are found; ratios are guarded."""

from pathlib import Path

import pytest
import torch

from kava.errors import UserError
from kava.generate import Reasoner
from kava.tools.bench.decoding import NamedModel, build_reasoner, decode_incremental, decode_recomputed, questions_for
from kava.tools.bench.decoding import _first_difference as first_difference
from kava.tools.bench.record import guard, read_bench, unequal_work, write_bench
from kava.tools.bench.workload import HALF, Workload
from kava.tools.smoke.lab import Lab

TINY = Workload(shape="tiny", question=9, latents=4, lora_r=0)
QUESTIONS = ["Tom has 7 apples .", "Anna buys 3 books . She gives 2 books to a friend . How many books does Anna have ?"]


@pytest.fixture(scope="module")
def reasoner() -> Reasoner:
    return build_reasoner(TINY)


def test_cached_decoding_equals_recomputed_decoding_with_padding(reasoner: Reasoner) -> None:
    cached = decode_incremental(reasoner, QUESTIONS, 12)
    assert cached == decode_recomputed(reasoner, QUESTIONS, 12)
    assert [len(tokens) for tokens in cached] == [12, 12]
    assert cached == [decode_recomputed(reasoner, [question], 12)[0] for question in QUESTIONS]


def test_end_of_text_is_never_written(reasoner: Reasoner) -> None:
    """Even where the model wants nothing else."""
    backbone, eos = reasoner.model.backbone, reasoner.builder.tokenizer.eos_token_id
    hidden = backbone.causal_lm.get_output_embeddings().weight[eos].detach()[None] * 100
    assert int(super(type(backbone), backbone).logits(hidden).argmax()) == eos
    logits = backbone.logits(hidden).detach()
    assert int(logits.argmax()) != eos
    assert float(logits[0, eos]) == -torch.inf


def test_a_saved_model_decodes_the_built_in_problems(tmp_path: Path) -> None:
    source = NamedModel(str(Lab(tmp_path).base))
    reasoner = build_reasoner(source)
    questions = questions_for(source, reasoner.builder, 3)
    assert len(set(questions)) == 3
    assert decode_incremental(reasoner, questions, 6) == decode_recomputed(reasoner, questions, 6)


def test_the_earliest_difference_counts() -> None:
    assert first_difference([[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5, 6]]) is None
    assert first_difference([[1, 2, 3], [4, 5, 6]], [[1, 2, 9], [4, 8, 6]]) == 1


def test_unequal_work_is_named() -> None:
    step = {"loss_difference": {"naive": 2e-3, "pccot": 1e-7}}
    decoding = {"same_tokens": False, "first_difference": 4}
    problems = ["a loss of naive is off by 2.0e-03, allowed 1e-03", "decoding differs from token 5 on"]
    assert unequal_work({"step": step, "decoding": decoding}, "float32") == problems
    assert unequal_work({"step": step}, "bfloat16") == []
    assert len(unequal_work({"step": {"loss_difference": {"naive": float("nan")}}}, "float32")) == 1
    assert unequal_work({"step": {"loss_difference": {HALF: 2e-3}}}, "float32") == []


def test_guard_allows_15_percent() -> None:
    rows = guard({"a": 2.0, "b": 2.0, "c": 2.0, "d": 2.0}, {"a": 1.71, "b": 1.69, "c": 9.0})
    assert [(row.name, row.passed) for row in rows] == [("a", True), ("b", False), ("c", True), ("d", False)]


def test_bench_file_round_trip_and_refusal(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    write_bench(path, {"shape": "tiny", "threads": 1}, {"a": 2.5}, {"step": {}})
    found = read_bench(path)
    assert (found.settings, found.ratios) == ({"shape": "tiny", "threads": 1}, {"a": 2.5})
    assert found.provenance["packages"]["torch"] == torch.__version__
    path.write_text('{"format": "kava.bench/1"}')
    with pytest.raises(UserError, match=r"bench.json is broken: settings: .*record it anew: python -m kava bench --output"):
        read_bench(path)
    path.write_text('{"format": ')
    with pytest.raises(UserError, match=r"bench.json cannot be read \(Expecting value"):
        read_bench(path)


def test_small_numbers_stay_numbers(tmp_path: Path) -> None:
    """JSON writes 1e-09, which YAML would read as text."""
    write_bench(tmp_path / "bench.json", {}, {"a": 1e-9}, {"difference": 2e-8})
    found = read_bench(tmp_path / "bench.json")
    assert (found.ratios["a"], found.measured["difference"]) == (1e-9, 2e-8)
