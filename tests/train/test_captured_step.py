"""A training step as a CUDA graph: the same gradients."""

from contextlib import nullcontext

import pytest
import torch

from helpers.tiny import make_batch, make_examples, tiny_model
from kava.train.captured_step import CapturedStep


@pytest.mark.gpu
def test_a_captured_step_is_the_step() -> None:
    device = torch.device("cuda")
    results = []
    for captured in (False, True):
        model = tiny_model("llama", lora=True).to(device).train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

        def run(batch, divisor, model=model, captured=captured):
            model.backbone.adapters.refresh()
            # As training does where it captures; against autograd's own sums.
            with model.backbone.adapters.sum_gradients() if captured else nullcontext():
                output = model(batch)
                (output["loss"].sum() / divisor).backward()
            return {"loss": output["loss"].detach()}

        step = CapturedStep(run, trained, device) if captured else run
        batches = [make_batch(model, make_examples(4, seed=seed)).to(device) for seed in range(3)]
        losses = torch.stack([step(batch, 4.0)["loss"] for batch in batches * 2])
        results.append((losses, torch.cat([parameter.grad.flatten() for parameter in trained])))
    torch.testing.assert_close(results[1][0], results[0][0])
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-3, atol=1e-5)
