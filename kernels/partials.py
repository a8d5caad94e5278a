"""Sums over chunks, kept apart per chunk and combined per scope in a fixed order: the same bits from run to run."""

import triton
import triton.language as tl

from .tiles import tanh_and_sech_squared

# Chunk p's sums are column p of a (6, P) float64 tensor: |w|, tanh, |w| sech^2, w^2 tanh sech^2, |w| >= high, weights.


@triton.jit
def statistics_terms(u, x):
    """Row sums of u, tanh x, u sech^2 x and u^2 tanh x sech^2 x of tiles u = |w|, x = s u, (EIGHTS, 8) -> (EIGHTS,)."""
    tanh, sech2 = tanh_and_sech_squared(x)
    first = u * sech2
    return tl.sum(u, 1), tl.sum(tanh, 1), tl.sum(first, 1), tl.sum(u * first * tanh, 1)


@triton.jit
def add_compensated(total, error, term):
    """Kahan's sum: total - error + term, with what the addition lost in the new error."""
    corrected = term - error
    larger = total + corrected
    return larger, (larger - total) - corrected


@triton.jit
def store_sum(partials_ptr, position, total, error):
    """Add up the lanes of a compensated sum in float64 and store it."""
    tl.store(partials_ptr + position, tl.sum(total.to(tl.float64) - error.to(tl.float64)))


@triton.jit
def scope_sums(partials_ptr, chunk_scopes_ptr, P, scope, LANES: tl.constexpr):
    """The six sums of one scope over all chunks, in an order that depends on nothing but P."""
    lane = tl.arange(0, LANES)
    n = tl.zeros((LANES,), dtype=tl.float64)
    t0 = tl.zeros((LANES,), dtype=tl.float64)
    t1 = tl.zeros((LANES,), dtype=tl.float64)
    t2 = tl.zeros((LANES,), dtype=tl.float64)
    above = tl.zeros((LANES,), dtype=tl.float64)
    swept = tl.zeros((LANES,), dtype=tl.float64)
    for start in range(0, P, LANES):
        p = start + lane
        mine = (p < P) & (tl.load(chunk_scopes_ptr + p, mask=p < P, other=-1) == scope)
        n += tl.load(partials_ptr + p, mask=mine, other=0.0)
        t0 += tl.load(partials_ptr + P + p, mask=mine, other=0.0)
        t1 += tl.load(partials_ptr + 2 * P + p, mask=mine, other=0.0)
        t2 += tl.load(partials_ptr + 3 * P + p, mask=mine, other=0.0)
        above += tl.load(partials_ptr + 4 * P + p, mask=mine, other=0.0)
        swept += tl.load(partials_ptr + 5 * P + p, mask=mine, other=0.0)
    return tl.sum(n), tl.sum(t0), tl.sum(t1), tl.sum(t2), tl.sum(above), tl.sum(swept)


@triton.jit(do_not_specialize=["P"])
def _add_partials_kernel(
    partials_ptr,  # (6, P) float64
    chunk_scopes_ptr,  # (P,) int32
    statistics_ptr,  # (R, 7) float64
    found_inf_ptr,  # one float32, or None
    P,
    LANES: tl.constexpr,
):
    if found_inf_ptr is not None:
        if tl.load(found_inf_ptr) != 0:
            return
    scope = tl.program_id(0)
    n, t0, t1, t2, above, swept = scope_sums(partials_ptr, chunk_scopes_ptr, P, scope, LANES)
    row_ptr = statistics_ptr + scope * 7
    tl.store(row_ptr, tl.load(row_ptr) + n)
    tl.store(row_ptr + 1, tl.load(row_ptr + 1) + t0)
    tl.store(row_ptr + 2, tl.load(row_ptr + 2) + t1)
    tl.store(row_ptr + 3, tl.load(row_ptr + 3) + t2)
    tl.store(row_ptr + 4, tl.load(row_ptr + 4) + above)
    tl.store(row_ptr + 6, tl.load(row_ptr + 6) + swept)


def add_partials(partials, chunk_scopes, statistics, found_inf) -> None:
    """Add the sums of every scope to its statistics (the candidates are counted already), unless found_inf is set."""
    R, P = statistics.shape[0], chunk_scopes.numel()
    if R and P:
        _add_partials_kernel[(R,)](partials, chunk_scopes, statistics, found_inf, P, LANES=1024, num_warps=4)
