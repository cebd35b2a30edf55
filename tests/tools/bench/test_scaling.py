"""What grows with the trace grows in proportion: counted numbers, never a clock. And what the growth benchmark concludes."""

import math
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import spawn
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.forked_python import python
from kava.cache.attention import ImportanceRecorder, _record
from kava.eviction import SCORERS, Options, Trace, compress
from kava.tools.bench.data import measure_data
from kava.tools.bench.scaling import (
    BASE,
    entries,
    exponent,
    faster_than_formulas,
    growth,
    measure_scaling,
    over_formula,
    scaling_figure,
)

LAYERS, HEADS, WIDTH, ANSWER = 2, 2, 8, 5


class Made(TorchDispatchMode):
    """Counts the numbers in all tensors that are made, and those of the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.total = self.largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.total += tensor.numel()
                self.largest = max(self.largest, tensor.numel())
        return result


def trace_of(length: int, layers: int = LAYERS, batch: int = 1) -> Trace:
    generator = torch.Generator().manual_seed(length)
    keys, values = (torch.randn(layers, batch, HEADS, length, WIDTH, generator=generator) for _ in range(2))
    importance = torch.rand(layers, batch, HEADS, length, generator=generator)
    return Trace(keys, values, importance, torch.ones(batch, length, dtype=torch.bool), torch.arange(batch))


# R-KV's own code looks at all pairs of entries.
@pytest.mark.parametrize("scorer", [scorer for scorer in SCORERS if scorer != "rkv_original"])
def test_compression_makes_numbers_in_proportion_to_the_trace(scorer: str) -> None:
    made = {}
    for length in (512, 1024, 2048):
        with Made() as counted:
            compress(trace_of(length), scorer, 24, 0.1)
        made[length] = counted
    for length in (512, 1024):
        assert made[2 * length].total < 2.05 * made[length].total
        assert made[length].largest <= LAYERS * HEADS * length * WIDTH


def test_importance_makes_numbers_in_proportion_to_the_trace() -> None:
    """Only the answer's rows are computed: 5 rows, however long the trace."""
    module = torch.nn.Module()
    module.layer_idx = 0
    made = {}
    for length in (512, 1024, 2048):
        entries_now = length + ANSWER
        query, key = torch.randn(1, 2 * HEADS, entries_now, WIDTH), torch.randn(1, HEADS, entries_now, WIDTH)
        rows = torch.arange(length, entries_now)[None]
        recorder = ImportanceRecorder(rows, torch.ones(1, ANSWER, dtype=torch.bool), 0, length)
        with Made() as counted:
            _record(recorder, module, query, key, None, None, None, None)
        assert recorder.layers[0].shape == (1, HEADS, length)
        made[length] = counted
    for length in (512, 1024):
        assert made[2 * length].total < 2.05 * made[length].total
        assert made[length].largest < length * length / 4


def test_a_quadratic_scorer_would_be_seen() -> None:
    keys = trace_of(512).keys
    with Made() as counted:
        keys @ keys.transpose(-1, -2)
    assert counted.largest > LAYERS * HEADS * 512 * WIDTH


def test_8192_tokens_become_24_entries() -> None:
    trace = trace_of(8192)
    kept = compress(trace, "rkv", 24, 0.1)
    assert kept.keys.shape == (LAYERS, 1, HEADS, 24, WIDTH)
    assert kept.slot_mask.all()
    assert (kept.indices.diff(dim=-1) > 0).all()
    scores = SCORERS["rkv"](trace, Options(24, 0.1))
    best = scores.topk(24).indices.sort().values
    assert torch.equal(kept.indices, best)


def test_exponent_is_that_of_a_power_law() -> None:
    assert exponent([1, 2, 4, 8], [3.0, 12.0, 48.0, 192.0]) == pytest.approx(2.0)
    assert exponent([5, 10, 20], [7.0, 7.0, 7.0]) == pytest.approx(0.0)


@pytest.mark.parametrize(("field", "factor"), [("batch", 8.0), ("layers", 8.0)])
def test_entries_are_proportional_to_batch_and_layers(field: str, factor: float) -> None:
    assert entries(replace(BASE, **{field: 8 * getattr(BASE, field)})) / entries(BASE) == factor


def grown(axis: str, seconds: float, memory: float) -> list[dict[str, Any]]:
    """What grows by these powers, beside a formula that grows in proportion."""
    values = [1, 2, 4]
    powers = (("seconds", seconds), ("step alone MiB", memory))
    return [growth(axis, what, values, [float(value**power) for value in values], values) for what, power in powers]


def test_what_grows_faster_than_its_formula_is_named() -> None:
    rows = [*grown("Q", 1.2, 1.05), *grown("C", 2.0, 0.5), *grown("M", 0.9, 1.3)]
    assert faster_than_formulas(rows) == [
        "NOT as the formulas say: seconds grow with C to the power 2.00, the formula's is 1.00",
        "NOT as the formulas say: step alone MiB grow with M to the power 1.30, the formula's is 1.00",
    ]
    assert len(faster_than_formulas([rows[0] | {"power": math.nan}])) == 1
    assert over_formula(rows[-1]) == pytest.approx(4 / 4**1.3)
    figure = scaling_figure(rows)
    assert len(figure.axes) == 6
    assert all(len(axes.lines) == 2 for axes in figure.axes)


@pytest.fixture
def processes_are_forks() -> Iterator[None]:
    """The processes that measure have imported everything when they start."""
    before = spawn.get_executable()
    spawn.set_executable(python())
    yield
    spawn.set_executable(before)


@pytest.mark.slow
@pytest.mark.usefixtures("processes_are_forks")
def test_a_point_is_measured_in_a_process_of_its_own() -> None:
    base = replace(BASE, shape="tiny", question=9, cot=7, latents=4, lora_r=4)
    found = measure_scaling(base, doublings=1, repeats=1, axes=("L",))
    (rows,) = found.tables.values()
    assert [(row["axis"], row["what"], row["values"]) for row in rows] == [("L", "seconds", [2, 4]), ("L", "step alone MiB", [2, 4])]
    assert rows[1]["formula power"] == pytest.approx(1.0)
    assert all(value > 0 for row in rows for value in row["measured"])
    assert found.ratios.keys() == {"scaling.memory_formula_over_L"}


@pytest.mark.slow
@pytest.mark.usefixtures("processes_are_forks")
def test_two_starts_on_generated_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from helpers.tiny import mini_tokenizer, tiny_lm

    mini_tokenizer().save_pretrained(tmp_path)
    tiny_lm(vocabulary=len(mini_tokenizer())).config.save_pretrained(tmp_path)
    found = measure_data(900, str(tmp_path))
    (first, second), (read,) = found.tables.values()
    assert second["processor seconds"] < first["processor seconds"]
    assert first["peak MiB"] > first["before it"] > 0
    assert 0 < read["MiB tokenised"] < read["MiB"] * 4
    assert 0 < read["padding, %"] < read["shuffled, %"] < 100
    assert found.ratios["data.limit_over_peak_memory"] == pytest.approx(2048 / first["peak MiB"])
