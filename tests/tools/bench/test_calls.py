"""Operations of a training step: counted, and held to a bound."""

from kava.tools.bench.step import count_calls
from kava.tools.bench.workload import Workload


def test_a_layer_takes_no_more_operations_than_it_did() -> None:
    few, many = (
        dict(zip(("forward", "backward"), *count_calls(Workload("llama-1b", layers=layers)).tables.values(), strict=True))
        for layers in (2, 4)
    )
    # Of one layer in all five passes; peft's own adapters took 430 forward and 560 backward (16 layers, 2026-11-26: 6,900 and 9,000),
    # adapters in groups 340 and 500.
    layer = {name: (many[name]["without views"] - few[name]["without views"]) / 2 for name in many}
    assert 0 < layer["forward"] <= 200
    assert 0 < layer["backward"] <= 235
    assert ["native_dropout", 2 * 4 * 5] in many["forward"]["kinds"]
