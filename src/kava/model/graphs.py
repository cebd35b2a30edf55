"""Passes without gradients as CUDA graphs: asked for once, replayed for every further batch of the same shape."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import torch

MAX_GRAPHS = 64

Made = TypeVar("Made")


class InferenceGraphs:
    """What was made for the shapes seen last, and the memory pool of its graphs.

    On a CPU nothing is captured: the same buffers are used, and passes run operation by operation.

    Args:
        device: where the passes run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.captures = device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if self.captures else None
        self._made: OrderedDict[Any, Any] = OrderedDict()

    def get(self, key: Any, make: Callable[[], Made], busy: Callable[[Made], bool] = lambda _: False) -> Made:
        """What was made for a shape, or what `make` makes now; also where what was made is `busy`: it stays with who uses it."""
        if key not in self._made or busy(self._made[key]):
            # Buffers of inference mode could not be written to outside of it.
            with torch.inference_mode(False), torch.no_grad():
                self._made[key] = make()
        self._made.move_to_end(key)
        while len(self._made) > MAX_GRAPHS:
            self._made.popitem(last=False)
        made: Made = self._made[key]
        return made

    def capture(self, run: Callable[[], Made]) -> Callable[[], Made]:
        """A function that does what `run` does, whose inputs and outputs are tensors that stay where they are."""
        if not self.captures:
            return run
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            # Libraries set themselves up, and kernels are compiled, in a pass that is not recorded.
            run()
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            outputs = run()

        def replay() -> Made:
            graph.replay()
            return outputs

        return replay

    def clear(self) -> None:
        """Give the memory back."""
        self._made.clear()
