"""dY @ B.T at the positions of a CSR pattern, for dY (M, N) and B (K, N) or their transposes: one program per row."""

import triton
import triton.language as tl

from .tiles import compute, element, rounded, wide


@triton.jit
def _csr_sddmm_kernel(
    row_offsets_ptr, columns_ptr, dvalues_ptr,  # (M + 1,) and (nnz,) int32, (nnz,)
    dy_ptr, b_ptr,  # (M, N), (K, N)
    N,
    stride_dm, stride_dn, stride_bk, stride_bn,
    COMPUTE: tl.constexpr, DVALUES: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0).to(tl.int64)
    end = tl.load(row_offsets_ptr + m + 1)
    for first in range(tl.load(row_offsets_ptr + m), end, BLOCK_I):
        i = first + tl.arange(0, BLOCK_I)
        k = tl.load(columns_ptr + i, mask=i < end, other=0).to(tl.int64)
        acc = tl.zeros((BLOCK_I, BLOCK_N), dtype=COMPUTE)
        for first_n in range(0, N, BLOCK_N):
            n = first_n + tl.arange(0, BLOCK_N).to(tl.int64)
            dy = wide(tl.load(dy_ptr + m * stride_dm + n * stride_dn, mask=n < N, other=0.0), COMPUTE)
            place = k[:, None] * stride_bk + n[None, :] * stride_bn
            b = wide(tl.load(b_ptr + place, mask=(i < end)[:, None] & (n < N)[None, :], other=0.0), COMPUTE)
            acc += dy[None, :] * b
        tl.store(dvalues_ptr + i, rounded(tl.sum(acc, 1), DVALUES), mask=i < end)


def csr_sddmm(dy, b, row_offsets, columns, transposed, dvalues) -> None:
    """Write (dy @ b.T) at the pattern, or (dy.T @ b) if transposed, into dvalues. Launches only: the op has checked."""
    M = row_offsets.numel() - 1
    if dvalues.numel() == 0:
        return
    N = b.shape[0] if transposed else b.shape[1]
    strides = (*dy.stride()[::-1], *b.stride()[::-1]) if transposed else (*dy.stride(), *b.stride())
    _csr_sddmm_kernel[(M,)](
        row_offsets, columns, dvalues, dy, b, N, *strides,
        COMPUTE=compute(b.dtype), DVALUES=element(b.dtype), BLOCK_I=16,
        BLOCK_N=min(128, triton.next_power_of_2(max(N, 1))),
    )  # fmt: skip
