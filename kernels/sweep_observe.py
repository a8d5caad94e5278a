"""The sweep without an update: masks and statistics of every weight in one pass; one program per chunk."""

import triton
import triton.language as tl

from .sweep import bracket, coefficients, no_sums, observe, store_sums
from .tiles import MASK, WEIGHT, bits, chunk_of, compute, eights, element, packed, pointer, wide


@triton.jit(do_not_specialize=["P_all", "first_p", "capacity"])
def _sweep_observe_kernel(
    rows_ptr, chunks_ptr,  # (T, 16) int64, (P, 2) int32: tensor, number of the chunk in it
    coefficients_ptr, brackets_ptr, statistics_ptr, candidates_ptr, partials_ptr,
    P_all, first_p, capacity,
    W: tl.constexpr, COMPUTE: tl.constexpr, MASKED: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr,
    EIGHTS: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0)
    row, scope, start, size = chunk_of(rows_ptr, chunks_ptr, p, ALIGNED, CHUNK)
    w_ptr = pointer(rows_ptr, row, WEIGHT, W, ALIGNED) + start
    mask_ptr = packed(rows_ptr, row, MASK, start)
    _, _, scale, _ = coefficients(coefficients_ptr, scope, COMPUTE)
    low, high = bracket(brackets_ptr, scope, COMPUTE)

    tile = tl.arange(0, EIGHTS)[:, None] * 8 + tl.arange(0, 8)[None, :]
    sums = no_sums(EIGHTS, COMPUTE)
    for first in range(0, size, EIGHTS * 8):
        n = first + tile
        valid = n < size
        w = tl.load(w_ptr + n, mask=valid, other=0.0)
        u = tl.abs(wide(w, COMPUTE))
        if MASKED:
            keep = bits(mask_ptr, first, size, 255, EIGHTS)
            tl.store(w_ptr + n, tl.zeros(w.shape, W), mask=valid & (keep == 0))
            u = tl.where(keep, u, 0.0)
        sums = observe(
            sums,
            u,
            valid,
            scale,
            low,
            high,
            candidates_ptr + scope * capacity,
            statistics_ptr + scope * 7 + 5,
            capacity,
        )
    store_sums(sums, size, partials_ptr, P_all, first_p + p)


def sweep_observe(table, coefficients, brackets, statistics, candidates, partials) -> None:
    """One launch over a table of weights of one dtype."""
    if not (table.scoped or table.masked):
        return
    _sweep_observe_kernel[(table.chunks.shape[0],)](
        table.rows, table.chunks, coefficients, brackets, statistics, candidates, partials,
        partials.shape[1], table.first, candidates.shape[1],
        W=element(table.dtypes[0]), COMPUTE=compute(table.dtypes[0]), MASKED=table.masked, ALIGNED=table.aligned,
        CHUNK=table.chunk, EIGHTS=eights(table.dtypes[0]), num_warps=4,
    )  # fmt: skip
