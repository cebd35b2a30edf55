"""Which steps are bad, and what becomes of one: saved, counted and skipped, or the end of the run."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.tiny import lora_config, make_batch, make_examples, mini_model, mini_tokenizer
from kava.checkpoint import Trained
from kava.errors import UserError
from kava.train.bad_steps import BadSteps
from kava.train.checkpoints import Checkpoints
from kava.train.guard import RecordedBatch, generator_states
from kava.train.state import State

SOUND = torch.tensor(2.0)


def bad_steps(run: Path, allowed: int) -> BadSteps:
    config = lora_config(**{"method": "no_cot", "training.max_bad_batches": allowed})
    return BadSteps(Checkpoints(run, Trained(mini_model(method="no_cot"), mini_tokenizer(), config, "a/test")))


def step(*losses: float) -> list[RecordedBatch]:
    """Two micro-batches of the same examples; the second has these losses."""
    batch = make_batch(mini_model(method="no_cot"), make_examples(len(losses)))
    values = [torch.ones(len(losses)), torch.tensor(losses)]
    return [RecordedBatch(batch, generator_states(), {"loss": loss, "student_ce": loss.clone()}) for loss in values]


@pytest.mark.parametrize(
    ("losses", "norm", "scaled", "bad"),
    [
        ((1.0, 2.0), SOUND, False, False),
        ((1.0, torch.nan), SOUND, False, True),
        ((torch.inf, 2.0), SOUND, False, True),
        ((torch.inf, 2.0), SOUND, True, True),
        ((1.0, 2.0), torch.tensor(torch.nan), False, True),
        # Its scaler finds infinite gradients by design and skips those steps itself.
        ((1.0, 2.0), torch.tensor(torch.inf), True, False),
    ],
)
def test_a_step_is_bad_by_any_loss_or_by_a_gradient_that_no_scaler_checks(
    tmp_path: Path, losses: tuple[float, ...], norm: Tensor, scaled: bool, bad: bool
) -> None:
    state = State(max_steps=9, global_step=4)
    assert bad_steps(tmp_path, allowed=1).check_and_skip(step(*losses), norm, state, scaled=scaled) is bad
    assert state.skipped_batches == bad
    assert state.global_step == 4
    assert [path.name for path in tmp_path.iterdir()] == ["bad_batch-5"] * bad


def test_steps_are_skipped_up_to_their_number_and_the_next_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps, state = bad_steps(tmp_path, allowed=2), State(max_steps=9)
    for state.global_step in (0, 3):
        assert steps.check_and_skip(step(1.0, torch.nan), SOUND, state, scaled=False)
    assert state.skipped_batches == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kava: ")]
    assert [line.rpartition("; ")[2] for line in lines] == ["skipped, 1 of at most 2", "skipped, 2 of at most 2"]
    assert lines[1].startswith("kava: step 4: student_ce is NaN in 1 of 4 examples")
    state.global_step = 7
    with pytest.raises(UserError, match=r"step 8: .*kava replay .*bad_batch-8 .*--training.max_bad_batches 3"):
        steps.check_and_skip(step(1.0, torch.nan), SOUND, state, scaled=False)
    assert state.skipped_batches == 2
    # The step that ends the run can be replayed too.
    reports = {path.name: json.loads((path / "report.json").read_text()) for path in tmp_path.iterdir()}
    assert {name: report["step"] for name, report in reports.items()} == {"bad_batch-1": 1, "bad_batch-4": 4, "bad_batch-8": 8}


def test_a_run_that_allows_none_ends_at_the_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the gradient is infinite though all losses are finite .*--training.max_bad_batches 1"):
        bad_steps(tmp_path, allowed=0).check_and_skip(step(1.0, 2.0), torch.tensor(torch.inf), State(max_steps=9), scaled=False)
