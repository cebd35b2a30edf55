"""The promise of how much is tried; each test fails by itself where fewer inputs than its share came."""

from pathlib import Path

from helpers.fuzz_inputs import INPUTS, PROMISED


def test_the_inputs_add_up_to_the_promise() -> None:
    assert sum(INPUTS.values()) >= PROMISED == 2_000


def test_every_share_belongs_to_one_test() -> None:
    texts = "".join(path.read_text() for path in Path(__file__).parent.glob("test_fuzz_*.py"))
    assert [texts.count(f'INPUTS["{name}"]') for name in INPUTS] == [1] * len(INPUTS)
