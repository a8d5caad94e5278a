"""magnitude_mask in plain PyTorch: a full stable sort."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_ops.reference.kth_magnitude import magnitudes


def pack_bits(keep: Tensor) -> Tensor:
    """A row of bools as bytes, least significant bit first, padded with ones."""
    bits = torch.nn.functional.pad(keep.to(torch.uint8), (0, -keep.numel() % 8), value=1).view(-1, 8)
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=keep.device)
    return (bits * powers).sum(1).to(torch.uint8)


def in_storage_order(keep: Tensor, stride: Sequence[int]) -> Tensor:
    """The elements in the order in which a dense tensor of these strides holds them."""
    out = torch.empty_strided(keep.shape, tuple(stride), dtype=keep.dtype, device=keep.device).copy_(keep)
    return out.as_strided((keep.numel(),), (1,))


def first_nan(tensors: Sequence[Tensor]) -> int:
    """The index of the first tensor with a NaN, or -1."""
    return next((i for i, t in enumerate(tensors) if t.isnan().any()), -1)


def magnitude_mask(tensors: Sequence[Tensor], zeros: int, prune_ties: bool) -> list[Tensor]:
    """One packed mask per dense tensor; of equal magnitudes the later one in logical order is pruned first."""
    a = magnitudes(tensors)
    n = a.numel()
    values, order = a.flip(0).sort(stable=True)
    keep = torch.ones(n, dtype=torch.bool, device=a.device)
    keep[n - 1 - order[:zeros]] = False
    if prune_ties and zeros > 0:
        keep &= a > values[zeros - 1]
    parts = keep.split([t.numel() for t in tensors])
    return [pack_bits(in_storage_order(part.view(t.shape), t.stride())) for part, t in zip(parts, tensors, strict=True)]
