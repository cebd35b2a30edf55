"""Forward and backward pass of a micro-batch as one CUDA graph per shape, so that the device never waits for the host.

A step consists of thousands of operations. Launching one takes the host longer than most of them take the device; a graph needs one
launch. Everything that changes between steps is in buffers with fixed addresses: the batch, the divisor, weights, gradients, and the
state of the random generator, which a replay advances as far as the operations would have. On a CPU the same buffers are used, and the
operations run again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kava.data.collate import Batch

MAX_GRAPHS = 512
"""Maximum number of captured shapes; further shapes run eagerly."""

Values = dict[str, Tensor]
Run = Callable[[Batch, Tensor], Values]
"""Takes a batch and the divisor of its summed loss, a scalar on the device. Adds to the gradients; returns losses by name, [B] each."""


@dataclass
class _Captured:
    """A shape's input buffers, and what computes its losses from them."""

    batch: Batch
    replay: Callable[[], Values]


class CapturedStep:
    """Runs steps as CUDA graphs.

    Args:
        run: forward and backward pass. It must not wait for the device or derive a shape from tensor values.
        parameters: all trained parameters; their gradients are allocated once and added to in place.
        device: device that the step runs on.
    """

    def __init__(self, run: Run, parameters: Sequence[Tensor], device: torch.device) -> None:
        self.run = run
        self.parameters = parameters
        self.device = device
        self.graphs: dict[tuple[Any, ...], _Captured] = {}
        self._divisor = torch.ones((), device=device)
        self._warm = False
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._pool = torch.cuda.graph_pool_handle() if self._stream is not None else None

    def __call__(self, batch: Batch, divisor: float) -> Values:
        """Add the gradients of the summed loss / `divisor`, and return the losses of the batch by name, [B] each."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._divisor.fill_(divisor)
        key = batch.shape_key()
        if key not in self.graphs and (not self._warm or len(self.graphs) >= MAX_GRAPHS):
            return self._plain(batch)
        if key not in self.graphs:
            self.graphs[key] = self._capture(batch)
        held = self.graphs[key]
        held.batch.copy_(batch)
        # The next replay writes to the same memory.
        return {name: value.clone() for name, value in held.replay().items()}

    def release(self) -> None:
        """Discard all graphs and release their memory; shapes that occur again are captured again."""
        self.graphs.clear()
        self._pool = torch.cuda.graph_pool_handle() if self._stream is not None else None

    def _plain(self, batch: Batch) -> Values:
        """Run eagerly on the stream used for capture: autograd keeps accumulating a gradient on the stream of its first use."""
        if self._stream is None:
            self._warm = True
            return self.run(batch, self._divisor)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        try:
            with torch.cuda.stream(self._stream):
                values = self.run(batch, self._divisor)
        finally:
            # After an error too: kernels that were queued before it still write to the gradients.
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
        if not self._warm:
            # Free the cached memory of this pass for the graphs, which use their own memory pool.
            self._warm = True
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
        return values

    def _capture(self, batch: Batch) -> _Captured:
        held = batch.mapped(torch.clone)
        if self._stream is None:
            return _Captured(held, lambda: self.run(held, self._divisor))
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self.device)
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            values = self.run(held, self._divisor)
        fixed = {name: value.detach() for name, value in values.items()}

        def replay() -> Values:
            graph.replay()
            return fixed

        return _Captured(held, replay)
