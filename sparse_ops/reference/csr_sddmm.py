"""csr_sddmm in plain PyTorch: the dense product, sampled."""

import torch
from torch import Tensor


def csr_sddmm(dy: Tensor, b: Tensor, row_offsets: Tensor, columns: Tensor, transposed: bool) -> Tensor:
    """(dy @ b.T), or (dy.T @ b) if transposed, at the positions of the pattern; halves are computed in float32."""
    dtype = torch.float64 if b.dtype == torch.float64 else torch.float32
    product = dy.to(dtype).T @ b.to(dtype) if transposed else dy.to(dtype) @ b.to(dtype).T
    rows = torch.arange(product.shape[0], device=b.device)
    rows = rows.repeat_interleave(row_offsets.diff(), output_size=columns.numel())
    return product[rows, columns.long()].to(b.dtype)
