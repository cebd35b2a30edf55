"""A training step as a CUDA graph: the same gradients; on a CPU it runs as it is."""

from contextlib import nullcontext

import pytest
import torch

from helpers.tiny import make_batch, make_examples, tiny_model
from kava.train.captured_step import CapturedStep


def test_a_step_on_a_cpu_runs_as_it_is_and_adds_to_the_gradients() -> None:
    model = tiny_model("llama", lora=True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def run(batch, divisor):
        loss = model(batch)["loss"]
        (loss.sum() / divisor).backward()
        return {"loss": loss.detach()}

    step = CapturedStep(run, trained, torch.device("cpu"))
    batch = make_batch(model, make_examples())
    losses = step(batch, 5.0)["loss"]
    once = [parameter.grad.clone() for parameter in trained]
    step(batch, 5.0)
    assert torch.equal(losses, model(batch)["loss"])
    for parameter, gradient in zip(trained, once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)


@pytest.mark.gpu
def test_a_captured_step_is_the_step() -> None:
    device = torch.device("cuda")
    results = []
    for enabled in (False, True):
        model = tiny_model("llama", lora=True).to(device).train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

        def run(batch, divisor, model=model, enabled=enabled):
            model.backbone.adapters.refresh()
            # As training does where it captures; against autograd's own sums.
            with model.backbone.adapters.sum_gradients() if enabled else nullcontext():
                output = model(batch)
                (output["loss"].sum() / divisor).backward()
            return {"loss": output["loss"].detach()}

        step = CapturedStep(run, trained, device, enabled=enabled)
        batches = [make_batch(model, make_examples(4, seed=seed)).to(device) for seed in range(3)]
        losses = torch.stack([step(batch, 4.0)["loss"] for batch in batches * 2])
        results.append((losses, torch.cat([parameter.grad.flatten() for parameter in trained])))
    torch.testing.assert_close(results[1][0], results[0][0])
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-3, atol=1e-5)
