"""The end of a step: each scope's exact threshold, and the coefficients and the bracket of the next step.

One program per scope proves the threshold by its counts and finds it among the candidates. What it cannot prove, it
flags; digit counts and sums over the weights always follow, on no more programs than there are multiprocessors, and
return at once where no flag is set. Nothing is synchronised.
"""

import triton
import triton.language as tl

from .hypersparse_sums import exact_sums, known_threshold, next_scale
from .partials import scope_sums
from .radix import BINS, count_digit, magnitude
from .tiles import compute, key

LIMITS = {tl.float32: (2.0**-149, (2 - 2.0**-23) * 2.0**127), tl.float64: (5e-324, (2 - 2.0**-52) * 2.0**1023)}


@triton.jit
def _among_candidates(candidates_ptr, count, rank, KEY: tl.constexpr, ROUNDS: tl.constexpr, BITS: tl.constexpr):
    """The rank-th smallest of count numbers, by radix selection inside one program."""
    digit = tl.arange(0, BINS)
    prefix = tl.zeros((), dtype=tl.uint64)
    for i in tl.static_range(ROUNDS):
        left = BITS - 11 * i
        width = 11 if BITS - 11 * i > 11 else BITS - 11 * i
        shift = left - width
        counts = tl.zeros((BINS,), dtype=tl.int32)
        for first in range(0, count, BINS):
            c = first + digit
            keys = key(tl.load(candidates_ptr + c, mask=c < count, other=0.0), KEY)
            same = (c < count) & ((keys >> left).to(tl.uint64) == prefix)
            counts += tl.histogram(((keys >> shift) & 2047).to(tl.int32), BINS, mask=same)
        crossing = tl.sum((tl.cumsum(counts, 0) < rank).to(tl.int32))
        rank -= tl.sum(tl.where(digit < crossing, counts, 0))
        prefix = (prefix << width) | crossing.to(tl.uint64)
    return magnitude(prefix, KEY)


@triton.jit
def _next_up(x, KEY: tl.constexpr):
    """The next larger number of KEY above x >= 0, as float64."""
    if KEY == tl.float64:
        result = (x.to(tl.int64, bitcast=True) + 1).to(tl.float64, bitcast=True)
    else:
        result = (x.to(tl.float32).to(tl.int32, bitcast=True) + 1).to(tl.float32, bitcast=True).to(tl.float64)
    return result


@triton.jit
def _write_scope(
    r, threshold, s, N, A, hit, steady, count, size, capacity, tiny, largest, coefficients_ptr, brackets_ptr,
    report_ptr, EXACT: tl.constexpr,
):  # fmt: skip
    """Write a scope's coefficients, bracket and report; all scalars are float64."""
    ratio = tl.where((s > 0) & (A > 0), N / tl.where(A > 0, A, 1.0), 0.0)
    usable = s * ratio <= largest
    row_ptr = report_ptr + r * 8
    old = tl.load(row_ptr)
    s_old = tl.load(coefficients_ptr + r * 4 + 2)
    ds = tl.where(s_old > 0, (s - s_old) / tl.where(s_old > 0, s_old, 1.0), 0.0)
    tl.store(coefficients_ptr + r * 4 + 2, tl.where(usable, s, 0.0))
    tl.store(coefficients_ptr + r * 4 + 3, tl.where(usable, ratio, 0.0))

    moved = threshold - old
    drift = tl.where(tl.abs(moved) < 0.5 * tl.minimum(threshold, old), moved, 0.0)  # else a jump, not a movement
    if EXACT:
        drift = 0.0
    low = tl.load(brackets_ptr + r * 2)
    high = tl.load(brackets_ptr + r * 2 + 1)
    far = tl.abs(drift)
    cold = tl.minimum(tl.maximum(2 * far, 0.01 * threshold), 0.05 * threshold)
    most = tl.minimum(tl.maximum(size / 128, 128.0), capacity / 2)
    least = tl.minimum(tl.maximum(size / 8192, 32.0), most)
    grown = tl.where(count < least, 0.625 * (high - low), 0.45 * (high - low))  # two literals would be float32
    half = tl.where(hit, tl.maximum(3 * far, grown), cold)
    width = (high - low) / tl.maximum(count, 1.0)  # of one candidate
    bounded = tl.minimum(half, 0.5 * most * width)
    half = tl.where((count > 0) & (high > low) & (hit | (count > capacity)), bounded, half)
    center = threshold + drift
    new_low = tl.maximum(center - half, 0.0)
    new_high = tl.maximum(center + half, _next_up(tl.maximum(new_low, center), tl.float64))
    tl.store(brackets_ptr + r * 2, tl.where(threshold > 0, new_low, tiny))
    tl.store(brackets_ptr + r * 2 + 1, tl.where(threshold > 0, new_high, tiny))

    tl.store(row_ptr, threshold)
    tl.store(row_ptr + 1, old)
    tl.store(row_ptr + 2, hit.to(tl.float64))
    tl.store(row_ptr + 3, count)
    tl.store(row_ptr + 4, ds)
    tl.store(row_ptr + 5, tl.load(row_ptr + 5) + tl.where(hit & steady, 0.0, 1.0))
    tl.store(row_ptr + 7, 0.0)


@triton.jit(do_not_specialize=["capacity"])
def _prove_kernel(
    ranks_ptr, sizes_ptr,  # (R,) int64 each
    coefficients_ptr, brackets_ptr, statistics_ptr, candidates_ptr, report_ptr,
    work_ptr,  # (R, 8) float64: flag (1: sums, 2: threshold and sums), hit, count, threshold
    capacity,
    tolerance: tl.float64, tiny: tl.float64, largest: tl.float64,
    EXACT: tl.constexpr, KEY: tl.constexpr, ROUNDS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0)
    row_ptr = statistics_ptr + r * 7
    N, T0, T1 = tl.load(row_ptr), tl.load(row_ptr + 1), tl.load(row_ptr + 2)
    T2, above, count = tl.load(row_ptr + 3), tl.load(row_ptr + 4), tl.load(row_ptr + 5)
    swept = tl.load(row_ptr + 6)
    for i in tl.static_range(7):
        tl.store(row_ptr + i, 0.0)
    tl.store(work_ptr + r * 8, 0.0)
    rank = tl.load(ranks_ptr + r).to(tl.float64)
    size = tl.load(sizes_ptr + r).to(tl.float64)
    if (rank > 0) & ((swept > 0) | EXACT):
        tl.store(report_ptr + r * 8 + 6, tl.load(report_ptr + r * 8 + 6) + 1)
        finite = N < float("inf")
        if finite | EXACT:
            complete = finite & (swept == size)
            if EXACT:
                complete = finite & (size < 0)
            low, high = tl.load(brackets_ptr + r * 2), tl.load(brackets_ptr + r * 2 + 1)
            near = low.to(KEY).to(tl.float64)
            first = tl.where(near < low, _next_up(near, KEY), near)
            below = size - above - count
            inside = (rank > below) & (rank <= below + count)
            single = inside & (_next_up(first, KEY) >= high)  # one number fits into the bracket
            zero = (rank <= below) & (low <= tiny)
            threshold = tl.where(single, first, 0.0)
            known = complete & (single | zero)
            if complete & inside & (single == 0) & (count <= capacity):
                known = complete
                threshold = _among_candidates(
                    candidates_ptr + r.to(tl.int64) * capacity, count.to(tl.int32), (rank - below).to(tl.int64),
                    KEY, ROUNDS, BITS,
                )  # fmt: skip
            s = next_scale(threshold, largest)
            s_old = tl.load(coefficients_ptr + r * 4 + 2)
            near_old = (s > 0) & (s_old > 0) & (tl.abs(s - s_old) <= tolerance * s_old)
            if known & ((s == s_old) | near_old):
                ds = s - s_old
                A = T0 + ds * T1 - ds * ds * T2
                _write_scope(
                    r, threshold, s, N, A, known, known, count, size, capacity, tiny, largest, coefficients_ptr,
                    brackets_ptr, report_ptr, EXACT,
                )  # fmt: skip
            else:
                tl.store(work_ptr + r * 8, tl.where(known, 1.0, 2.0))
                tl.store(work_ptr + r * 8 + 1, known.to(tl.float64))
                tl.store(work_ptr + r * 8 + 2, count)
                tl.store(work_ptr + r * 8 + 3, threshold)
        else:
            tl.store(report_ptr + r * 8 + 7, 1.0)


@triton.jit(do_not_specialize=["P", "capacity"])
def _write_exact_kernel(
    ranks_ptr, sizes_ptr, coefficients_ptr, brackets_ptr, report_ptr, work_ptr, histograms_ptr,
    partials_ptr, chunk_scopes_ptr,  # (6, P) float64, (P,) int32
    P, capacity,
    tiny: tl.float64, largest: tl.float64,
    EXACT: tl.constexpr, KEY: tl.constexpr, ROUNDS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0)
    if tl.load(work_ptr + r * 8) > 0:
        threshold = known_threshold(work_ptr, histograms_ptr, ranks_ptr, r, ROUNDS, BITS, KEY)
        N, A, _, _, _, _ = scope_sums(partials_ptr, chunk_scopes_ptr, P, r, 1024)
        if (threshold < float("inf")) & (N < float("inf")):
            hit = tl.load(work_ptr + r * 8 + 1) > 0
            _write_scope(
                r, threshold, next_scale(threshold, largest), N, A, hit, hit & (N < 0), tl.load(work_ptr + r * 8 + 2),
                tl.load(sizes_ptr + r).to(tl.float64), capacity, tiny, largest, coefficients_ptr, brackets_ptr,
                report_ptr, EXACT,
            )  # fmt: skip
        else:
            tl.store(report_ptr + r * 8 + 7, 1.0)


def sweep_finish(
    plan, ranks, sizes, tolerance, exact, coefficients, brackets, statistics, candidates, report, work, histograms,
    partials,
) -> None:  # fmt: skip
    """All launches that end a step. histograms (R, ROUNDS, 2048) are zero; work (R, 8), partials (6, P) need not be."""
    R, capacity = candidates.shape
    if R == 0:
        return
    key_type = compute(candidates.dtype)
    tiny, largest = LIMITS[key_type]
    shared = {"EXACT": exact, "KEY": key_type, "ROUNDS": histograms.shape[1]}
    shared["BITS"] = 63 if key_type == tl.float64 else 31
    _prove_kernel[(R,)](
        ranks, sizes, coefficients, brackets, statistics, candidates, report, work, capacity, tolerance,
        tiny, largest, num_warps=8, **shared,
    )  # fmt: skip
    for number in range(histograms.shape[1]):
        for table in plan.tables:
            count_digit(table, histograms, ranks, work, None, number, key_type, plan.programs)
    for table in plan.tables:
        exact_sums(table, None, work, histograms, ranks, largest, partials, key_type, plan.programs)
    _write_exact_kernel[(R,)](
        ranks, sizes, coefficients, brackets, report, work, histograms, partials, plan.chunk_scopes, partials.shape[1],
        capacity, tiny, largest, num_warps=8, **shared,
    )  # fmt: skip
