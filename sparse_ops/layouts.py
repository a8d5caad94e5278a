"""Batch-last: the layout that sparse layers keep among themselves, told by strides alone."""

from torch import Tensor


def is_batch_last(x: Tensor) -> bool:
    """Whether the batch, dimension 0, lies innermost in memory and the rest, in its order, around it without gaps.

    For images (N, C, H, W) that is x.permute(1, 2, 3, 0).is_contiguous(), for a matrix (N, F) x.t().is_contiguous();
    the tensor keeps its shape, and elementwise operations of torch keep its strides. Sparse layers compute on such
    tensors without packing or transposing, and answer in the same layout. A tensor may be contiguous too, with one
    sample or no more than one feature.
    """
    return x.dim() > 0 and x.movedim(0, -1).is_contiguous()


def batch_last(x: Tensor) -> Tensor:
    """The same tensor with its batch innermost in memory: x itself where it is, else a copy."""
    return x if is_batch_last(x) else x.movedim(0, -1).contiguous().movedim(-1, 0)
