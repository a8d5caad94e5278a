"""csr_spmm in plain PyTorch: the matrix made dense."""

import torch
from torch import Tensor


def dense(values: Tensor, row_offsets: Tensor, columns: Tensor, n_columns: int) -> Tensor:
    """The matrix of a CSR pattern and its values."""
    n_rows = row_offsets.numel() - 1
    rows = torch.arange(n_rows, device=values.device).repeat_interleave(row_offsets.diff(), output_size=values.numel())
    return values.new_zeros(n_rows, n_columns).index_put((rows, columns.long()), values)


def csr_spmm(
    values: Tensor,
    row_offsets: Tensor,
    columns: Tensor,
    b: Tensor,
    transposed: bool,
    bias: Tensor | None,
    addend: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """A @ b + bias[:, None] + addend, or b @ A.T + bias + addend if transposed, through the activation.

    Halves are computed in float32.
    """
    dtype = torch.float64 if b.dtype == torch.float64 else torch.float32
    a = dense(values, row_offsets, columns, b.shape[1 if transposed else 0]).to(dtype)
    y = b.to(dtype) @ a.T if transposed else a @ b.to(dtype)
    if bias is not None:
        y = y + (bias if transposed else bias[:, None])
    if addend is not None:
        y = y + addend
    if activation != "none":
        y = y.relu() if activation == "relu" else torch.nn.functional.gelu(y)
    return y.to(b.dtype)
