"""The products of LoRA, forward and backward, for linear layers that read the same rows; for use inside autograd functions.

h = dropout(x) A^T,   y_i = x W_i^T + b_i + s_i h_i B_i^T        with A = [A_1; A_2; ..] and h = [h_1, h_2, ..]
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kava.model.cpu_matmul import add_matmul_, linear, matmul, transposed_matmul


@dataclass(frozen=True)
class Lora:
    """The adapters of layers with one input, with weights in the compute dtype.

    Attributes:
        tensors: A of all layers, [r_1 + r_2 + .., in], and B of each, [out, r]; autograd keeps them apart from the rest.
        scales: s of each.
        dropout: probability for the input.
        trained_dtype: dtype of the trained weights and their gradients.
    """

    tensors: tuple[Tensor, ...]
    scales: tuple[float, ...]
    dropout: float
    trained_dtype: torch.dtype

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

    def outputs(
        self, rows: Tensor, weights: Sequence[Any], biases: Sequence[Any]
    ) -> tuple[list[Tensor], tuple[Tensor, Tensor | None, Tensor]]:
        """y of each layer, [N, out], and what the backward pass needs: the input after dropout, the dropout mask and h.

        Args:
            rows: x, [N, in].
            weights: W of each.
            biases: b of each, or None.
        """
        dropped, mask = rows, None
        if self.dropout:
            dropped, mask = torch.native_dropout(rows, self.dropout, True)
        hidden, outputs = linear(dropped, self.down, None), []
        for weight, bias, up, scale, low in zip(weights, biases, self.ups, self.scales, hidden.split(self._ranks, 1), strict=True):
            output = linear(rows, weight.to(rows.dtype), None if bias is None else bias.to(rows.dtype))
            outputs.append(add_matmul_(output, low, up.T, scale))
        return outputs, (dropped, mask, hidden)

    def gradients(self, rows: Sequence[Tensor], dropped: Tensor, hidden: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """The gradient of h, and those of W (none), b (none), A and B of each layer, from the gradients of the outputs, [N, out]."""
        to_hidden, to_ups = torch.empty_like(hidden), []
        places, lows = to_hidden.split(self._ranks, 1), hidden.split(self._ranks, 1)
        for row, up, scale, low, place in zip(rows, self.ups, self.scales, lows, places, strict=True):
            torch.addmm(place, row, up, beta=0, alpha=scale, out=place)
            to_ups.append(_weight_gradient(row, low, self.trained_dtype, up, scale))
        to_downs = _weight_gradient(to_hidden, dropped, self.trained_dtype).split(self._ranks)
        return to_hidden, [part for pair in zip(to_downs, to_ups, strict=True) for part in (None, None, *pair)]

    def to_input(
        self, rows: Sequence[Tensor], weights: Sequence[Tensor], to_hidden: Tensor, *, dropped: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The gradient of x, and where the input was `dropped`, apart from it that of the input after dropout."""
        through = frozen_gradient(rows, weights)
        if dropped:
            return through, matmul(to_hidden, self.down)
        return add_matmul_(through, to_hidden, self.down), None


def frozen_gradient(rows: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The gradient of x through the frozen weights: the sum of `rows[i]` W_i."""
    total = matmul(rows[0], weights[0].to(rows[0].dtype))
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        add_matmul_(total, row, weight.to(row.dtype))
    return total


def _weight_gradient(rows: Tensor, inputs: Tensor, dtype: torch.dtype, weight: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """scale rows^T inputs in the dtype of the trained weights; on a GPU without rounding to half precision in between.

    `weight` is any tensor of the result's shape in the dtype of `rows`; it is needed where there is a scale.
    """
    if rows.is_cuda and dtype == torch.float32 != rows.dtype:
        place = rows.new_empty(rows.shape[1], inputs.shape[1], dtype=dtype)
        gradient: Tensor = torch.ops.aten.addmm.dtype(place, rows.T, inputs, dtype, beta=0, alpha=scale)
        return gradient
    if weight is None:
        return transposed_matmul(rows, inputs).to(dtype)
    return torch.addmm(weight, rows.T, inputs, beta=0, alpha=scale).to(dtype)
