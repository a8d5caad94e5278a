"""Batch-last: the layout that sparse layers keep among themselves, told by strides alone."""

from torch import Tensor


def is_batch_last(x: Tensor) -> bool:
    """Whether the batch, dimension 0, lies innermost in memory, around it the channels and outermost the pixels.

    For images (N, C, H, W) that is x.permute(2, 3, 1, 0).is_contiguous(), for a matrix (N, F) x.t().is_contiguous(), of
    other tensors the rest lies in its order. The tensor keeps its shape, and elementwise operations of torch keep its
    strides. Sparse layers compute on such tensors without packing or transposing, and answer in the same layout. A
    tensor may be in another layout too: one image is channels_last, one sample or one feature contiguous.
    """
    return x.dim() > 0 and x.permute(_order(x.dim())).is_contiguous()


def batch_last(x: Tensor) -> Tensor:
    """The same tensor with its batch innermost in memory: x itself where it is, else a copy."""
    if is_batch_last(x):
        return x
    order = _order(x.dim())
    return x.permute(order).contiguous().permute([order.index(d) for d in range(x.dim())])


def _order(dims: int) -> tuple[int, ...]:
    """Dimensions as they lie in memory, outermost first."""
    return (2, 3, 1, 0) if dims == 4 else (*range(1, dims), 0)
