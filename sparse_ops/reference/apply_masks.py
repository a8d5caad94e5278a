"""apply_masks_ in plain PyTorch."""

import torch
from torch import Tensor


def unpack_bits(bits: Tensor, n: int) -> Tensor:
    """The first n bits of packed bytes as bools, least significant bit of a byte first."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits[:, None] >> shifts) & 1).flatten()[:n].bool()


def apply_masks_(tensors: list[Tensor], masks: list[Tensor]) -> None:
    """tensors are 1-D, in storage order."""
    for t, mask in zip(tensors, masks, strict=True):
        t.masked_fill_(~unpack_bits(mask, t.numel()), 0.0)
