"""Forward and backward of a micro-batch as one CUDA graph per shape, so that the device never waits for the host.

A step takes thousands of operations, and asking for each costs the host more time than most cost the device. A graph is asked for once.
Everything that differs from step to step lies in buffers that stay where they are: the batch, the divisor, weights, gradients, and the
state of the random generator, which a replay moves on as far as the operations would have.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kava.data.collate import Batch

MAX_GRAPHS = 512
"""Shapes that are remembered; those beyond are run operation by operation."""

Values = dict[str, Tensor]
Run = Callable[[Batch, Tensor], Values]
"""Takes a batch and what its summed loss is divided by, a scalar on the device. Adds to the gradients; gives losses by name, [B] each."""


@dataclass
class _Graph:
    graph: Any
    batch: Batch
    values: Values


class CapturedStep:
    """Runs steps through graphs on a CUDA device; elsewhere, or where capture is off, as they are.

    Args:
        run: the step. Nothing in it may wait for the device or take a shape from its values.
        parameters: all that are trained; their gradients are allocated once and added to in place.
        device: where the step runs.
        enabled: capture, where the device can.
    """

    def __init__(self, run: Run, parameters: Sequence[Tensor], device: torch.device, *, enabled: bool = True) -> None:
        self.run = run
        self.parameters = parameters
        self.captures = enabled and device.type == "cuda"
        self.device = device
        self.graphs: dict[tuple[Any, ...], _Graph] = {}
        self._divisor = torch.ones((), device=device)
        self._warm = False
        if self.captures:
            self._stream = torch.cuda.Stream(device)
            self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, batch: Batch, divisor: float) -> Values:
        """Losses of the batch by name, [B] each; the gradients of their sum / divisor have been added."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._divisor.fill_(divisor)
        if not self.captures:
            return self.run(batch, self._divisor)
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
        """Forget all graphs and give their memory back; shapes that come again are recorded again."""
        self.graphs.clear()
        if self.captures:
            self._pool = torch.cuda.graph_pool_handle()

    def _plain(self, batch: Batch) -> Values:
        """On the stream that graphs are captured on: gradients remember the stream of their first use."""
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            values = self.run(batch, self._divisor)
        torch.cuda.current_stream(self.device).wait_stream(self._stream)
        if not self._warm:
            # What this pass took goes to the graphs, which have memory of their own.
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
