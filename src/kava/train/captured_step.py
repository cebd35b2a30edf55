"""Forward and backward pass of a micro-batch as one CUDA graph per shape, so that the device never waits for the host.

A step consists of thousands of operations. Launching one takes the host longer than most of them take the device; a graph needs one
launch. Everything that changes between steps is in buffers with fixed addresses: the batch, the divisor, weights, gradients, and the
state of the random generator, which a replay advances as far as the operations would have.
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
class _Graph:
    graph: Any
    batch: Batch
    values: Values


class CapturedStep:
    """Runs steps as CUDA graphs.

    Args:
        run: forward and backward pass. It must not wait for the device or derive a shape from tensor values.
        parameters: all trained parameters; their gradients are allocated once and added to in place.
        device: CUDA device that the step runs on.
    """

    def __init__(self, run: Run, parameters: Sequence[Tensor], device: torch.device) -> None:
        self.run = run
        self.parameters = parameters
        self.device = device
        self.graphs: dict[tuple[Any, ...], _Graph] = {}
        self._divisor = torch.ones((), device=device)
        self._warm = False
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

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
        held.graph.replay()
        # The next replay writes to the same memory.
        return {name: value.clone() for name, value in held.values.items()}

    def release(self) -> None:
        """Discard all graphs and release their memory; shapes that occur again are captured again."""
        self.graphs.clear()
        self._pool = torch.cuda.graph_pool_handle()

    def _plain(self, batch: Batch) -> Values:
        """Run eagerly on the stream used for capture: autograd keeps accumulating a gradient on the stream of its first use."""
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

    def _capture(self, batch: Batch) -> _Graph:
        held = batch.mapped(torch.clone)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self.device)
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            values = self.run(held, self._divisor)
        return _Graph(graph, held, {name: value.detach() for name, value in values.items()})
