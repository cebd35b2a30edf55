"""Cached and recomputed decoding write the same; differences are found; ratios are guarded."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kava.cli import main
from kava.errors import UserError
from kava.generate import Reasoner
from kava.model.backbone import Backbone
from kava.tools.bench import decoding, step
from kava.tools.bench.decoding import (
    NamedModel,
    build_reasoner,
    compare_decoding,
    decode_incremental,
    decode_recomputed,
    first_difference,
    questions_for,
)
from kava.tools.bench.record import guard, read_bench, write_bench
from kava.tools.bench.step import VARIANTS, measure_step
from kava.tools.bench.timing import Memory
from kava.tools.bench.workload import Workload, build_workload
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


def test_an_end_of_text_token_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the model writes nothing else."""
    eos = build_workload(TINY).tokenizer.eos_token_id
    right = Backbone.logits
    monkeypatch.setattr(Backbone, "logits", lambda self, hidden: right(self, hidden).index_fill(-1, torch.tensor([eos]), torch.inf))
    reasoner = build_reasoner(TINY)
    assert decode_incremental(reasoner, QUESTIONS, 5) == decode_recomputed(reasoner, QUESTIONS, 5) == [[eos] * 5] * 2


def test_a_saved_model_decodes_the_built_in_problems(tmp_path: Path) -> None:
    source = NamedModel(str(Lab(tmp_path).base))
    reasoner = build_reasoner(source)
    questions = questions_for(source, reasoner.builder, 3)
    assert len(set(questions)) == 3
    assert decode_incremental(reasoner, questions, 6) == decode_recomputed(reasoner, questions, 6)


def test_the_earliest_difference_counts() -> None:
    assert first_difference([[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5, 6]]) is None
    assert first_difference([[1, 2, 3], [4, 5, 6]], [[1, 2, 9], [4, 8, 6]]) == 1


def test_unequal_work_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is off by a fifth of a percent, and a text with another last token."""
    workload = Workload(shape="tiny", batch=2, question=9, cot=7, answer=6, latents=4, lora_r=4)
    memory = Memory(1, 2, 0.0, 0.0)
    for module in (step, decoding):
        monkeypatch.setattr(module, "peak_memory", lambda *_, **__: memory)
    monkeypatch.setattr(step, "variants_of", lambda _: VARIANTS)
    assert measure_step(workload, 1).problems == []
    right = step.naive_losses
    monkeypatch.setattr(step, "naive_losses", lambda *given: {name: 1.002 * value for name, value in right(*given).items()})
    (problem,) = measure_step(workload, 1).problems
    assert problem == "NOT the same work: a loss of naive is off by 2.0e-03, allowed 1e-03"
    assert measure_step(replace(workload, dtype="bfloat16"), 1).problems == []
    monkeypatch.setattr(step, "naive_losses", lambda *given: (terms := right(*given)) | {"kv": torch.nan * terms["kv"]})
    (problem,) = measure_step(workload, 1).problems
    assert problem == "NOT the same work: a loss of naive is off by nan, allowed 1e-03"
    monkeypatch.setitem(decoding.WAYS, "recomputed", lambda *given: [[*text[:-1], -1] for text in decode_recomputed(*given)])
    found = compare_decoding(TINY, batch=2, new_tokens=5, repeats=1)
    assert found.problems == ["NOT the same work: decoding differs from token 5 on"]


def test_guard_allows_15_percent() -> None:
    rows = guard({"a": 2.0, "b": 2.0, "c": 2.0, "d": 2.0}, {"a": 1.71, "b": 1.69, "c": 9.0}, 0.15)
    assert [row["verdict"] for row in rows] == ["ok", "worse by more than 15 %", "ok", "not measured"]


def test_bench_file_round_trip_and_refusal(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    write_bench(path, {"shape": "tiny", "threads": 1}, {"a": 2.5}, {"step": {}})
    found = read_bench(path)
    assert (found.settings, found.ratios) == ({"shape": "tiny", "threads": 1}, {"a": 2.5})
    assert found.provenance["packages"]["torch"] == torch.__version__
    path.write_text('{"format": "kava.bench/1"}')
    with pytest.raises(UserError, match=r"bench.json is broken: settings: .*record it again: python -m kava bench --output"):
        read_bench(path)
    path.write_text('{"format": ')
    with pytest.raises(UserError, match=r"bench.json is not valid JSON \(Expecting value"):
        read_bench(path)


def test_counts_are_written_and_are_nothing_to_guard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bench(tmp_path / "calls.json", {"parts": ["calls"]}, {}, {"operations": [{"pass": "forward"}]})
    assert read_bench(tmp_path / "calls.json").measured
    with pytest.raises(SystemExit):
        main("bench", ["--guard", str(tmp_path / "calls.json")])
    assert "has no ratio to compare with; record the parts step" in capsys.readouterr().err


def test_small_numbers_stay_numbers(tmp_path: Path) -> None:
    """JSON writes 1e-09, which YAML would read as text."""
    write_bench(tmp_path / "bench.json", {}, {"a": 1e-9}, {"difference": 2e-8})
    found = read_bench(tmp_path / "bench.json")
    assert (found.ratios["a"], found.measured["difference"]) == (1e-9, 2e-8)
