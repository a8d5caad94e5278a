"""The SGD sweep: penalty, update, mask and statistics of every weight in one pass; one program per chunk."""

import triton
import triton.language as tl

from .sweep import bracket, coefficients, no_sums, observe, penalty_gradient, store_sums
from .tiles import (
    GRAD,
    GROUP,
    MASK,
    STATE,
    WEIGHT,
    bits,
    chunk_of,
    compute,
    eights,
    element,
    packed,
    pointer,
    rounded,
    wide,
)


@triton.jit(do_not_specialize=["P_all", "first_p", "capacity"])
def _regularized_sgd_kernel(
    rows_ptr, chunks_ptr,  # (T, 16) int64, (P, 2) int32: tensor, number of the chunk in it
    coefficients_ptr, brackets_ptr, statistics_ptr, candidates_ptr, partials_ptr,
    lr_ptr, grad_scale_ptr, found_inf_ptr,  # one number each, or None; the rate takes the place of lr
    P_all, first_p, capacity,
    lr: tl.float64, momentum: tl.float64, dampening: tl.float64, weight_decay: tl.float64,
    W: tl.constexpr, G: tl.constexpr, M: tl.constexpr, COMPUTE: tl.constexpr, PENALTY: tl.constexpr,
    MASKED: tl.constexpr, MOMENTUM: tl.constexpr, FIRST: tl.constexpr, NESTEROV: tl.constexpr, MAXIMIZE: tl.constexpr,
    STATISTICS: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr, EIGHTS: tl.constexpr,
):  # fmt: skip
    if found_inf_ptr is not None:
        if tl.load(found_inf_ptr) != 0:
            return
    p = tl.program_id(0)
    row, scope, start, size = chunk_of(rows_ptr, chunks_ptr, p, ALIGNED, CHUNK)
    w_ptr = pointer(rows_ptr, row, WEIGHT, W, ALIGNED) + start
    g_ptr = pointer(rows_ptr, row, GRAD, G, ALIGNED) + start
    m_ptr = pointer(rows_ptr, row, STATE, M, ALIGNED) + start
    mask_ptr = packed(rows_ptr, row, MASK, start)
    group_ptr = packed(rows_ptr, row, GROUP, start)

    strength, kept_strength, scale, pull = coefficients(coefficients_ptr, scope, COMPUTE)
    low, high = bracket(brackets_ptr, scope, COMPUTE)
    row_candidates_ptr = candidates_ptr + scope * capacity
    count_ptr = statistics_ptr + scope * 7 + 5
    if grad_scale_ptr is not None:
        grad_scale = tl.load(grad_scale_ptr).to(COMPUTE)
    if lr_ptr is not None:
        rate = tl.load(lr_ptr).to(COMPUTE)
    else:
        rate = tl.full((), lr, COMPUTE)
    decay = tl.full((), weight_decay, COMPUTE)
    beta = tl.full((), momentum, COMPUTE)
    fresh = tl.full((), 1 - dampening, COMPUTE)

    tile = tl.arange(0, EIGHTS)[:, None] * 8 + tl.arange(0, 8)[None, :]
    sums = no_sums(EIGHTS, COMPUTE)
    for first in range(0, size, EIGHTS * 8):
        n = first + tile
        valid = n < size
        w = wide(tl.load(w_ptr + n, mask=valid, other=0.0), COMPUTE)
        g = wide(tl.load(g_ptr + n, mask=valid, other=0.0), COMPUTE)
        if grad_scale_ptr is not None:
            g = g / grad_scale
        if MAXIMIZE:
            g = -g
        g += decay * w
        if PENALTY != "none":
            grouped = valid
            if PENALTY == "growing_l2":
                grouped = bits(group_ptr, first, size, 0, EIGHTS)
            g += penalty_gradient(w, grouped, strength, kept_strength, scale, pull, PENALTY)
        m = g
        if MOMENTUM:
            if not FIRST:
                m = beta * wide(tl.load(m_ptr + n, mask=valid, other=0.0), COMPUTE) + fresh * g
            g = g + beta * m if NESTEROV else m
        w -= rate * g
        if MASKED:
            keep = bits(mask_ptr, first, size, 255, EIGHTS)
            w = tl.where(keep, w, 0.0)
            m = tl.where(keep, m, 0.0)
        if MOMENTUM:
            tl.store(m_ptr + n, rounded(m, M), mask=valid)
        stored = rounded(w, W)
        tl.store(w_ptr + n, stored, mask=valid)
        if STATISTICS:
            u = tl.where(valid, tl.abs(wide(stored, COMPUTE)), 0.0)
            sums = observe(sums, u, valid, scale, low, high, row_candidates_ptr, count_ptr, capacity)
    if STATISTICS:
        store_sums(sums, size, partials_ptr, P_all, first_p + p)


def regularized_sgd(
    table, coefficients, brackets, statistics, candidates, partials, penalty, lr, momentum, dampening, weight_decay,
    nesterov, maximize, first_step, lr_tensor, grad_scale, found_inf,
) -> None:  # fmt: skip
    """One launch over a table of tensors with weight, gradient and state of equal dtypes."""
    _regularized_sgd_kernel[(table.chunks.shape[0],)](
        table.rows, table.chunks, coefficients, brackets, statistics, candidates, partials,
        lr_tensor, grad_scale, found_inf, partials.shape[1], table.first, candidates.shape[1],
        lr, momentum, dampening, weight_decay,
        W=element(table.dtypes[0]), G=element(table.dtypes[1]), M=element(table.dtypes[-1]),
        COMPUTE=compute(table.dtypes[0]), PENALTY=penalty,
        MASKED=table.masked, MOMENTUM=momentum != 0, FIRST=first_step, NESTEROV=nesterov, MAXIMIZE=maximize,
        STATISTICS=table.scoped, ALIGNED=table.aligned, CHUNK=table.chunk, EIGHTS=eights(table.dtypes[0]), num_warps=4,
    )  # fmt: skip
