"""The products of LoRA, forward and backward, for linear layers that read the same rows; for use inside autograd functions.

h = dropout(x) A^T,   y_i = x W_i^T + b_i + s_i h_i B_i^T        with A = [A_1; A_2; ..] and h = [h_1, h_2, ..]
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kava.model import layer_kernels as kernels
from kava.runtime.cpu_matmul import add_matmul_, linear, matmul, transposed_matmul


class GradientSums:
    """`.grad` of the A and B of layers with one input, to which every backward pass adds in place.

    Autograd would add the gradients of all passes of a step, one tensor after the other. It gets none instead, so neither do hooks
    on the weights and `torch.autograd.grad`: this is for a training step alone.

    Args:
        downs, ups: the trained A and B of each layer.
    """

    def __init__(self, downs: Sequence[Tensor], ups: Sequence[Tensor]) -> None:
        self.downs, self.ups = tuple(downs), tuple(ups)
        # After `allocate`: the `.grad` of all A in one matrix, and that of each B.
        self.totals: list[Tensor] = []
        self._parts: tuple[Tensor, ...] = ()

    def allocate(self) -> None:
        """Create the `.grad` that there is not, as zeros, and put those of all A behind each other, for one multiplication."""
        parts = [_gradient_of(one) for one in self.downs]
        if list(map(id, parts)) != list(map(id, self._parts)):
            whole = torch.cat(parts)
            self._parts = whole.split([len(part) for part in parts])
            for one, part in zip(self.downs, self._parts, strict=True):
                one.grad = part
            self.totals = [whole]
        self.totals[1:] = map(_gradient_of, self.ups)


def _gradient_of(weight: Tensor) -> Tensor:
    """`.grad` of a weight, zeros if there is none."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


@dataclass(frozen=True)
class Lora:
    """The adapters of layers with one input, with weights in the compute dtype.

    Attributes:
        tensors: A of all layers, [r_1 + r_2 + .., in], and B of each, [out, r]; autograd keeps them apart from the rest.
        scales: s of each.
        dropout: probability for the input.
        trained_dtype: dtype of the trained weights and their gradients.
        sums: where `gradients` adds those of A and B, instead of returning them.
    """

    tensors: tuple[Tensor, ...]
    scales: tuple[float, ...]
    dropout: float
    trained_dtype: torch.dtype
    sums: GradientSums | None = None

    @property
    def down(self) -> Tensor:
        """A of all layers."""
        return self.tensors[0]

    @property
    def ups(self) -> tuple[Tensor, ...]:
        """B of each."""
        return self.tensors[1:]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "Lora":
        """The same with other `tensors`."""
        return replace(self, tensors=tuple(tensors))

    @property
    def keep(self) -> float:
        """The factor of what dropout keeps."""
        return 1 / (1 - self.dropout) if self.dropout < 1 else 0.0

    @property
    def _ranks(self) -> list[int]:
        return [up.shape[1] for up in self.ups]

    def add(self, rows: Tensor, outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor | None, Tensor]:
        """Add s_i h_i B_i^T to each of `outputs`, [N, out], in place.

        Args:
            rows: x, [N, in].
            outputs: x W_i^T + b_i.

        Returns:
            What the backward pass needs: the input after dropout, the dropout mask and h.
        """
        dropped, mask = rows, None
        if self.dropout:
            dropped, mask = torch.native_dropout(rows, self.dropout, True)
        hidden = linear(dropped, self.down, None)
        for output, low, up, scale in zip(outputs, hidden.split(self._ranks, 1), self.ups, self.scales, strict=True):
            add_matmul_(output, low, up.T, scale)
        return dropped, mask, hidden

    def gradients(self, rows: Sequence[Tensor], dropped: Tensor, hidden: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """The gradient of h, and those of A and B of each layer, from the gradients of the outputs, [N, out]."""
        to_hidden = torch.empty_like(hidden)
        places, lows = to_hidden.split(self._ranks, 1), hidden.split(self._ranks, 1)
        for row, up, scale, place in zip(rows, self.ups, self.scales, places, strict=True):
            torch.addmm(place, row, up, beta=0, alpha=scale, out=place)
        products = [(to_hidden, dropped, 1.0), *zip(rows, lows, self.scales, strict=True)]
        if self.sums is not None:
            for total, product in zip(self.sums.totals, products, strict=True):
                kernels.add_weight_gradient(total, *product)
            return to_hidden, [None] * (2 * len(rows))
        of_downs, *of_ups = (
            _weight_gradient(*product, self.trained_dtype, up) for product, up in zip(products, (None, *self.ups), strict=True)
        )
        return to_hidden, [part for pair in zip(of_downs.split(self._ranks), of_ups, strict=True) for part in pair]

    def to_input(self, through: Tensor, to_hidden: Tensor, *, dropped: bool) -> tuple[Tensor, Tensor | None]:
        """The gradient of x, and where the input was `dropped`, apart from it that of the input after dropout.

        `through` is the gradient of x through the frozen weights, the sum of the outputs' gradients times W_i; it is overwritten.
        """
        if dropped:
            return through, matmul(to_hidden, self.down)
        return add_matmul_(through, to_hidden, self.down), None


def _weight_gradient(rows: Tensor, inputs: Tensor, scale: float, dtype: torch.dtype, weight: Tensor | None) -> Tensor:
    """scale rows^T inputs in the dtype of the trained weights; on a GPU without rounding to half precision in between.

    `weight` is any tensor of the result's shape in the dtype of `rows`; it is needed where there is a scale.
    """
    if rows.is_cuda and dtype == torch.float32 != rows.dtype and kernels.adds_weight_gradients(rows.device, rows.dtype):
        place = rows.new_empty(rows.shape[1], inputs.shape[1], dtype=dtype)
        gradient: Tensor = torch.ops.aten.addmm.dtype(place, rows.T, inputs, dtype, beta=0, alpha=scale)
        return gradient
    if weight is None:
        return transposed_matmul(rows, inputs).to(dtype)
    return torch.addmm(weight, rows.T, inputs, beta=0, alpha=scale).to(dtype)
