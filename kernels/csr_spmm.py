"""Y = A @ B for CSR A (M, K) and dense B (K, N), or Y.T from B.T: one program per tile of rows and columns of Y."""

import triton
import triton.language as tl

from .tiles import compute, element, rounded, wide


@triton.jit
def _csr_spmm_kernel(
    row_offsets_ptr, columns_ptr, values_ptr,  # A: (M + 1,) and (nnz,) int32, (nnz,)
    b_ptr, bias_ptr, addend_ptr, y_ptr,  # (K, N), (M,) or None, (M, N) or None, (M, N)
    M, N,
    stride_bk, stride_bn, stride_ym, stride_yn,
    ACTIVATION: tl.constexpr, COMPUTE: tl.constexpr, Y: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    of_m = tl.cdiv(M, BLOCK_M)  # one axis, since the others end at 65535
    m = tl.program_id(0) % of_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tl.program_id(0) // of_m).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    start = tl.load(row_offsets_ptr + m, mask=m < M, other=0)
    end = tl.load(row_offsets_ptr + m + 1, mask=m < M, other=0)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=COMPUTE)
    for i in range(tl.max(end - start)):
        live = start + i < end
        k = tl.load(columns_ptr + start + i, mask=live, other=0).to(tl.int64)
        a = wide(tl.load(values_ptr + start + i, mask=live, other=0.0), COMPUTE)
        place = k[:, None] * stride_bk + n[None, :] * stride_bn
        b = wide(tl.load(b_ptr + place, mask=live[:, None] & (n < N)[None, :], other=0.0), COMPUTE)
        acc += a[:, None] * b
    if bias_ptr is not None:
        acc += wide(tl.load(bias_ptr + m, mask=m < M, other=0.0), COMPUTE)[:, None]
    place = m.to(tl.int64)[:, None] * stride_ym + n[None, :] * stride_yn
    inside = (m < M)[:, None] & (n < N)[None, :]
    if addend_ptr is not None:
        acc += wide(tl.load(addend_ptr + place, mask=inside, other=0.0), COMPUTE)
    if ACTIVATION == "relu":
        acc = tl.where(acc < 0, 0.0, acc)
    elif ACTIVATION == "gelu":
        acc = 0.5 * acc * (1 + tl.erf(acc * 0.7071067811865476))
    tl.store(y_ptr + place, rounded(acc, Y), mask=inside)


def csr_spmm(values, row_offsets, columns, b, bias, transposed, y, addend, activation) -> None:
    """Write A @ b + bias[:, None] into y, or b @ A.T + bias if transposed; addend, of y's strides, and the activation.

    Launches only: the op has checked.
    """
    M = row_offsets.numel() - 1
    N = b.shape[0] if transposed else b.shape[1]
    if y.numel() == 0:
        return
    # Lanes run along what is contiguous in y: its columns, or its rows if transposed, where b's rows lie in L1 then.
    block_n = min(32 if transposed else 128, triton.next_power_of_2(N))
    block_m = min(2048 // block_n, triton.next_power_of_2(M))
    strides = (*b.stride()[::-1], *y.stride()[::-1]) if transposed else (*b.stride(), *y.stride())
    _csr_spmm_kernel[(triton.cdiv(M, block_m) * triton.cdiv(N, block_n),)](
        row_offsets, columns, values, b, bias, addend, y, M, N, *strides,
        ACTIVATION=activation, COMPUTE=compute(b.dtype), Y=element(y.dtype), BLOCK_M=block_m, BLOCK_N=block_n,
    )  # fmt: skip
