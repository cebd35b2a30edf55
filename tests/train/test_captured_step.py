"""A training step from buffers of fixed size, on a GPU as a CUDA graph: the same losses and gradients."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from helpers.tiny import make_batch, make_examples, set_dropout, tiny_model
from kava.data.collate import Batch
from kava.methods import METHODS
from kava.train import captured_step
from kava.train.captured_step import CapturedStep


def _trained(device: torch.device, method: str, captured: bool, dropout: float = 0.0) -> tuple[CapturedStep | None, Tensor, Tensor]:
    """Two rounds of three batches, two of them of one shape: the step, losses and summed gradients."""
    model = tiny_model("llama", method=method, lora=True).to(device).train()
    set_dropout(model, dropout)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def run(batch: Batch, divisor: Tensor | float) -> dict[str, Tensor]:
        model.backbone.adapters.refresh()
        # As training does where it captures; against autograd's own sums.
        with model.backbone.adapters.sum_gradients() if captured else nullcontext():
            output = model(batch)
            (output["loss"].sum() / divisor).backward()
        return {"loss": output["loss"].detach()}

    step = CapturedStep(run, trained, device) if captured else None
    batches = [make_batch(model, make_examples(count)).to(device) for count in (4, 3)]
    batches.append(batches[0].mapped(lambda tensor: tensor.flip(0).clone()))
    assert len({batch.shape_key() for batch in batches}) == 2
    torch.manual_seed(0)
    divisors = (4.0, 8.0, 2.0, 1.0, 16.0, 4.0)
    losses = [(step or run)(batch, divisor)["loss"] for batch, divisor in zip(batches * 2, divisors, strict=True)]
    gradients = [parameter.grad.flatten() for parameter in trained if parameter.grad is not None]
    return step, torch.cat(losses), torch.cat([one for one in gradients if one.any()])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("method", METHODS)
def test_a_captured_step_is_the_step(method: str, device: str) -> None:
    _, expected, to_weights = _trained(torch.device(device), method, False)
    step, losses, found = _trained(torch.device(device), method, True)
    assert step is not None
    assert step.graphs
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(found, to_weights, rtol=1e-3, atol=1e-5)
    step.release()
    assert not step.graphs


def test_beyond_the_largest_number_of_shapes_steps_run_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured_step, "MAX_GRAPHS", 1)
    _, expected, to_weights = _trained(torch.device("cpu"), "kava", False, dropout=0.25)
    step, losses, found = _trained(torch.device("cpu"), "kava", True, dropout=0.25)
    assert step is not None
    assert len(step.graphs) == 1
    assert torch.equal(losses, expected), "dropout draws the same masks"
    torch.testing.assert_close(found, to_weights, rtol=1e-3, atol=1e-5)
