"""The op sparse_ops::to_layout: a tensor copied into another order of its elements in memory."""

from typing import Any

import torch
from torch import Tensor

from sparse_ops import extension, launch, recycling
from sparse_ops.reference import to_layout as reference

torch.library.define("sparse_ops::to_layout", "(Tensor x, str layout) -> Tensor")


@torch.library.register_fake("sparse_ops::to_layout")
def _output(x: Tensor, layout: str) -> Tensor:
    """Check the operands, allocate y: the first half of the op and all of its fake."""
    if (layout, x.dim()) not in reference.ORDERS:
        known = ", ".join(f"{name} of {dims} dimensions" for name, dims in reference.ORDERS)
        raise ValueError(f"to_layout: layout is {layout!r} for x of {x.dim()} dimensions, expected {known}")
    order = reference.ORDERS[layout, x.dim()]
    y = recycling.empty([x.shape[d] for d in order], x)
    return y.permute([order.index(d) for d in range(x.dim())])


@torch.library.impl("sparse_ops::to_layout", ("cpu", "cuda"))
def _to_layout(x: Tensor, layout: str) -> Tensor:
    y = _output(x, layout)
    if launch.backend(x.device) == "native" and x.element_size() <= 8:
        extension.native().to_layout(x, y)
    else:
        y.copy_(reference.to_layout(x, layout))
    return y


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pass


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
    return dy, None


torch.library.register_autograd("sparse_ops::to_layout", _backward, setup_context=_setup_context)


def to_layout(x: Tensor, layout: str) -> Tensor:
    """A copy of x, of the same shape, with its elements in another order in memory; differentiable in x.

    layout: "batch_last" (an image batch (N, C, H, W) lies as (H, W, C, N), a matrix (N, F) as (F, N)), "channels_last"
    (images only) or "contiguous". Raises ValueError for another layout or number of dimensions.
    """
    return torch.ops.sparse_ops.to_layout(x, layout)
