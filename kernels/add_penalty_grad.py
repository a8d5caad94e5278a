"""Add the penalty's gradient to gradients: one launch for many tensors, one program per chunk."""

import triton
import triton.language as tl

from .sweep import coefficients, penalty_gradient
from .tiles import GRAD, GROUP, WEIGHT, bits, chunk_of, compute, eights, element, packed, pointer, rounded, wide


@triton.jit
def _add_penalty_grad_kernel(
    rows_ptr, chunks_ptr,  # (T, 16) int64, (P, 2) int32: tensor, number of the chunk in it
    coefficients_ptr,
    grad_scale_ptr,  # one float, or None
    W: tl.constexpr, G: tl.constexpr, COMPUTE: tl.constexpr, PENALTY: tl.constexpr, ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr, EIGHTS: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0)
    row, scope, start, size = chunk_of(rows_ptr, chunks_ptr, p, ALIGNED, CHUNK)
    if scope < 0:
        return
    w_ptr = pointer(rows_ptr, row, WEIGHT, W, ALIGNED) + start
    g_ptr = pointer(rows_ptr, row, GRAD, G, ALIGNED) + start
    group_ptr = packed(rows_ptr, row, GROUP, start)
    strength, kept_strength, scale, pull = coefficients(coefficients_ptr, scope, COMPUTE)
    tile = tl.arange(0, EIGHTS)[:, None] * 8 + tl.arange(0, 8)[None, :]
    for first in range(0, size, EIGHTS * 8):
        n = first + tile
        valid = n < size
        w = wide(tl.load(w_ptr + n, mask=valid, other=0.0), COMPUTE)
        g = wide(tl.load(g_ptr + n, mask=valid, other=0.0), COMPUTE)
        grouped = valid
        if PENALTY == "growing_l2":
            grouped = bits(group_ptr, first, size, 0, EIGHTS)
        added = penalty_gradient(w, grouped, strength, kept_strength, scale, pull, PENALTY)
        if grad_scale_ptr is not None:
            added = added * tl.load(grad_scale_ptr).to(COMPUTE)
        tl.store(g_ptr + n, rounded(g + added, G), mask=valid)


def add_penalty_grad(table, coefficients, penalty, grad_scale) -> None:
    """One launch over a table of weights and gradients of equal dtypes."""
    if penalty == "none" or not table.scoped:
        return
    _add_penalty_grad_kernel[(table.chunks.shape[0],)](
        table.rows, table.chunks, coefficients, grad_scale, W=element(table.dtypes[0]), G=element(table.dtypes[1]),
        COMPUTE=compute(table.dtypes[0]), PENALTY=penalty, ALIGNED=table.aligned, CHUNK=table.chunk,
        EIGHTS=eights(table.dtypes[0]), num_warps=4,
    )  # fmt: skip
