"""kth_magnitude in plain PyTorch: a full sort."""

from collections.abc import Sequence

import torch
from torch import Tensor


def promoted_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """The dtype in which all tensors are compared."""
    dtype = tensors[0].dtype
    for t in tensors:
        dtype = torch.promote_types(dtype, t.dtype)
    return dtype


def magnitudes(tensors: Sequence[Tensor]) -> Tensor:
    """All |w| in one row: tensor order, then logical (contiguous) order."""
    dtype = promoted_dtype(tensors)
    return torch.cat([t.reshape(-1).to(dtype).abs() for t in tensors])


def kth_magnitude(tensors: Sequence[Tensor], k: int) -> Tensor:
    """k is 1-based, from the smallest; a NaN anywhere gives NaN."""
    a = magnitudes(tensors).sort().values  # sorts NaN to the end
    return torch.where(a[-1].isnan(), a[-1], a[k - 1])
