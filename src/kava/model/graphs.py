"""CUDA graphs of passes without gradients: captured once, replayed for every further batch of the same shape."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import torch

MAX_GRAPHS = 64

Made = TypeVar("Made")


def reads_values(causal_lm: Any) -> bool:
    """Return whether a model's own code may read values of the device, which a graph cannot record.

    RoPE that depends on the length reads the longest position, and mixtures of experts may read how many tokens each expert has.
    """
    config = causal_lm.config.get_text_config()
    experts = any(getattr(config, name, None) for name in ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"))
    kinds = {str(getattr(module, "rope_type", "")) for module in causal_lm.modules()}
    return experts or any(kind in found for kind in ("dynamic", "longrope") for found in kinds)


class InferenceGraphs:
    """A cache of graphs and their buffers for the most recent shapes, and the memory pool of the graphs.

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
        """The cached object of a shape, or a new one from `make`; a `busy` object is replaced, and its current user keeps it."""
        if key not in self._made or busy(self._made[key]):
            # Tensors created in inference mode could not be written to outside of it.
            with torch.inference_mode(False), torch.no_grad():
                self._made[key] = make()
        self._made.move_to_end(key)
        while len(self._made) > MAX_GRAPHS:
            self._made.popitem(last=False)
        made: Made = self._made[key]
        return made

    def capture(self, run: Callable[[], Made]) -> Callable[[], Made]:
        """A function that replays `run`; inputs and outputs are tensors at fixed addresses."""
        if not self.captures:
            return run
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            # A warm-up pass that is not captured: libraries initialize, and kernels are compiled.
            run()
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            outputs = run()

        def replay() -> Made:
            graph.replay()
            return outputs

        return replay
