"""The gradient of the HyperSparse penalty with s and A as constants: one launch for many tensors."""

import triton
import triton.language as tl

from .tiles import GRAD, WEIGHT, chunk_of, compute, eights, element, pointer, rounded, sech_squared, split_scale, wide


@triton.jit
def _hypersparse_penalty_backward_kernel(
    rows_ptr, chunks_ptr,  # (T, 16) int64, (P, 2) int32: tensor, number of the chunk in it
    pull_ptr,  # (3,) float64: base, strength, s
    W: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr, EIGHTS: tl.constexpr,
):  # fmt: skip
    row, _, start, size = chunk_of(rows_ptr, chunks_ptr, tl.program_id(0), ALIGNED, CHUNK)
    w_ptr = pointer(rows_ptr, row, WEIGHT, W, ALIGNED) + start
    g_ptr = pointer(rows_ptr, row, GRAD, W, ALIGNED) + start
    base = tl.load(pull_ptr).to(COMPUTE)
    strength = tl.load(pull_ptr + 1).to(COMPUTE)
    s, t = split_scale(tl.load(pull_ptr + 2), COMPUTE)
    nothing = (base == 0) & (strength == 0)
    tile = tl.arange(0, EIGHTS)[:, None] * 8 + tl.arange(0, 8)[None, :]
    for first in range(0, size, EIGHTS * 8):
        n = first + tile
        w = wide(tl.load(w_ptr + n, mask=n < size, other=0.0), COMPUTE)
        g = base + strength * sech_squared(tl.abs(w) * s * t)
        g = tl.where(w > 0, g, tl.where(w < 0, -g, w * 0))  # a NaN stays one
        tl.store(g_ptr + n, rounded(tl.where(nothing, 0.0, g), W), mask=n < size)


def hypersparse_penalty_backward(table, coefficients) -> None:
    """Write sign(w) (base + strength sech^2(s |w|)) over a table of weights and gradients of one dtype."""
    _hypersparse_penalty_backward_kernel[(table.chunks.shape[0],)](
        table.rows, table.chunks, coefficients, W=element(table.dtypes[0]), COMPUTE=compute(table.dtypes[0]),
        ALIGNED=table.aligned, CHUNK=table.chunk, EIGHTS=eights(table.dtypes[0]), num_warps=4,
    )  # fmt: skip
