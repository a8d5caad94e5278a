"""Specification: the same tensor with other strides."""

import torch
from torch import Tensor

# Where each dimension of a logical (N, C, ...) tensor stands in memory, outermost first.
ORDERS = {
    ("batch_last", 2): (1, 0),
    ("batch_last", 4): (1, 2, 3, 0),
    ("channels_last", 4): (0, 2, 3, 1),
    ("contiguous", 2): (0, 1),
    ("contiguous", 4): (0, 1, 2, 3),
}


def empty(x: Tensor, layout: str) -> Tensor:
    """An uninitialised tensor like x in a layout."""
    order = ORDERS[layout, x.dim()]
    y = torch.empty([x.shape[d] for d in order], dtype=x.dtype, device=x.device)
    return y.permute([order.index(d) for d in range(x.dim())])


def to_layout(x: Tensor, layout: str) -> Tensor:
    """A copy of x whose elements lie in the order of the layout."""
    return empty(x, layout).copy_(x)
