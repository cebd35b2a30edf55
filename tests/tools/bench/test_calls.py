"""Operations of a training step: counted, and held to a bound."""

from kava.tools.bench.calls import count_calls
from kava.tools.bench.workload import Workload


def test_a_layer_takes_no_more_operations_than_it_did() -> None:
    few, many = (count_calls(Workload("llama-1b", layers=layers)) for layers in (2, 4))
    # Of one layer in all five passes; peft's own adapters took 430 forward and 560 backward (16 layers, 2026-11-26: 6,900 and 9,000).
    layer = {name: (many[name]["without_views"] - few[name]["without_views"]) / 2 for name in many}
    assert 0 < layer["forward"] <= 345
    assert 0 < layer["backward"] <= 505
    assert many["forward"]["kinds"]["native_dropout"] == 2 * 4 * 5
