"""The AdamW sweep: penalty, update, mask and statistics of every weight in one pass; one program per chunk."""

import triton
import triton.language as tl

from .sweep import bracket, coefficients, no_sums, observe, penalty_gradient, store_sums
from .tiles import (
    COLUMNS,
    GRAD,
    GROUP,
    MASK,
    STATE,
    STEP,
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
def _regularized_adamw_kernel(
    rows_ptr, chunks_ptr,  # (T, 16) int64, (P, 2) int32: tensor, number of the chunk in it
    coefficients_ptr, brackets_ptr, statistics_ptr, candidates_ptr, partials_ptr,
    lr_ptr, grad_scale_ptr, found_inf_ptr,  # one number each, or None; the rate takes the place of lr
    P_all, first_p, capacity,
    lr: tl.float64, beta1: tl.float64, beta2: tl.float64, eps: tl.float64, weight_decay: tl.float64,
    W: tl.constexpr, G: tl.constexpr, M: tl.constexpr, V: tl.constexpr, L: tl.constexpr, COMPUTE: tl.constexpr,
    PENALTY: tl.constexpr, MASKED: tl.constexpr, AMSGRAD: tl.constexpr, MAXIMIZE: tl.constexpr,
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
    v_ptr = pointer(rows_ptr, row, STATE + 1, V, ALIGNED) + start
    l_ptr = pointer(rows_ptr, row, STATE + 2, L, ALIGNED) + start
    mask_ptr = packed(rows_ptr, row, MASK, start)
    group_ptr = packed(rows_ptr, row, GROUP, start)

    strength, kept_strength, scale, pull = coefficients(coefficients_ptr, scope, COMPUTE)
    low, high = bracket(brackets_ptr, scope, COMPUTE)
    row_candidates_ptr = candidates_ptr + scope * capacity
    count_ptr = statistics_ptr + scope * 7 + 5
    if grad_scale_ptr is not None:
        grad_scale = tl.load(grad_scale_ptr).to(COMPUTE)
    step_ptr = tl.load(rows_ptr + row * COLUMNS + STEP).to(tl.pointer_type(tl.float32))
    step = tl.load(step_ptr).to(tl.float64)
    first_bias = 1 - tl.exp(step * tl.log(tl.full((), beta1, tl.float64)))
    second_bias = 1 - tl.exp(step * tl.log(tl.full((), beta2, tl.float64)))
    if lr_ptr is not None:
        wide_rate = tl.load(lr_ptr).to(tl.float64)
    else:
        wide_rate = tl.full((), lr, tl.float64)
    rate = (wide_rate / first_bias).to(COMPUTE)
    correction = (1 / tl.sqrt(second_bias)).to(COMPUTE)
    decay = (wide_rate * weight_decay).to(COMPUTE)
    floor = tl.full((), eps, COMPUTE)
    old_m, new_m = tl.full((), beta1, COMPUTE), tl.full((), 1 - beta1, COMPUTE)
    old_v, new_v = tl.full((), beta2, COMPUTE), tl.full((), 1 - beta2, COMPUTE)

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
        if PENALTY != "none":
            grouped = valid
            if PENALTY == "growing_l2":
                grouped = bits(group_ptr, first, size, 0, EIGHTS)
            g += penalty_gradient(w, grouped, strength, kept_strength, scale, pull, PENALTY)
        m = old_m * wide(tl.load(m_ptr + n, mask=valid, other=0.0), COMPUTE) + new_m * g
        v = old_v * wide(tl.load(v_ptr + n, mask=valid, other=0.0), COMPUTE) + new_v * g * g
        largest = v
        if AMSGRAD:
            before = wide(tl.load(l_ptr + n, mask=valid, other=0.0), COMPUTE)
            largest = tl.where(before > v, before, v)
        w = w - decay * w - rate * m / (tl.sqrt(largest) * correction + floor)
        if MASKED:
            keep = bits(mask_ptr, first, size, 255, EIGHTS)
            w = tl.where(keep, w, 0.0)
            m = tl.where(keep, m, 0.0)
            v = tl.where(keep, v, 0.0)
            largest = tl.where(keep, largest, 0.0)
        tl.store(m_ptr + n, rounded(m, M), mask=valid)
        tl.store(v_ptr + n, rounded(v, V), mask=valid)
        if AMSGRAD:
            tl.store(l_ptr + n, rounded(largest, L), mask=valid)
        stored = rounded(w, W)
        tl.store(w_ptr + n, stored, mask=valid)
        if STATISTICS:
            u = tl.where(valid, tl.abs(wide(stored, COMPUTE)), 0.0)
            sums = observe(sums, u, valid, scale, low, high, row_candidates_ptr, count_ptr, capacity)
    if STATISTICS:
        store_sums(sums, size, partials_ptr, P_all, first_p + p)


def regularized_adamw(
    table, coefficients, brackets, statistics, candidates, partials, penalty, lr, beta1, beta2, eps, weight_decay,
    maximize, lr_tensor, grad_scale, found_inf,
) -> None:  # fmt: skip
    """One launch over a table of tensors with weight, gradient and states of equal dtypes."""
    _regularized_adamw_kernel[(table.chunks.shape[0],)](
        table.rows, table.chunks, coefficients, brackets, statistics, candidates, partials,
        lr_tensor, grad_scale, found_inf, partials.shape[1], table.first, candidates.shape[1],
        lr, beta1, beta2, eps, weight_decay,
        W=element(table.dtypes[0]), G=element(table.dtypes[1]), M=element(table.dtypes[2]),
        V=element(table.dtypes[3]), L=element(table.dtypes[-1]), COMPUTE=compute(table.dtypes[0]), PENALTY=penalty,
        MASKED=table.masked, AMSGRAD=len(table.dtypes) == 5, MAXIMIZE=maximize, STATISTICS=table.scoped,
        ALIGNED=table.aligned, CHUNK=table.chunk, EIGHTS=eights(table.dtypes[0]), num_warps=4,
    )  # fmt: skip
