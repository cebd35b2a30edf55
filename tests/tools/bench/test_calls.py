"""Operations of a training step: counted, and held to a bound."""

from kava.tools.bench.step import count_calls
from kava.tools.bench.workload import Workload


def test_a_layer_takes_no_more_operations_than_it_did() -> None:
    few, many = (
        dict(zip(("forward", "backward"), *count_calls(Workload("llama-1b", layers=layers)).tables.values(), strict=True))
        for layers in (2, 4)
    )
    # Of one layer in all four passes; peft's own adapters took 430 forward and 560 backward in five (2026-11-26).
    layer = {name: (many[name]["without views"] - few[name]["without views"]) / 2 for name in many}
    assert 0 < layer["forward"] <= 125
    assert 0 < layer["backward"] <= 135
    whole = sum(few[name]["without views"] + 14 * layer[name] for name in few)
    assert whole < 4_500, "of LLaMA-3.2-1B, which has 16 layers"
    # Weights that read the same rows are one matrix: q, k and v; o; gate and up.
    assert dict(map(tuple, many["forward"]["kinds"]))["norm"] == 4 * 4
    assert ["native_dropout", 2 * 4 * 4] in many["forward"]["kinds"]
    assert ["add_weight_gradient", 6 * 4 * 4] in many["backward"]["kinds"]
