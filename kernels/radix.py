"""Radix selection over many tensors: one launch counts one digit of all magnitudes; the rest is read on the device.

The histograms are (R, ROUNDS, 2048) int64, zero before the first round. A digit has 11 bits, the last the rest: 3
rounds for the 31 bits of a float32 magnitude, 6 for the 63 of float64. Each launch derives from the rounds before it
which prefix holds the rank, so that nothing is synchronised.
"""

import triton
import triton.language as tl

from .tiles import COLUMNS, NUMEL, SCOPE, WEIGHT, element, key, pointer, wide

BINS = tl.constexpr(2048)


@triton.jit
def descend(histograms_ptr, rank, ROUNDS: tl.constexpr, BITS: tl.constexpr):
    """The first ROUNDS digits of the magnitude of rank 1, 2, ..., its rank among all that share them, their count."""
    digit = tl.arange(0, BINS)
    prefix = tl.zeros((), dtype=tl.uint64)
    count = rank
    for i in tl.static_range(ROUNDS):
        width = 11 if BITS - 11 * i > 11 else BITS - 11 * i
        counts = tl.load(histograms_ptr + i * BINS + digit)
        crossing = tl.sum((tl.cumsum(counts, 0) < rank).to(tl.int32))
        rank -= tl.sum(tl.where(digit < crossing, counts, 0))
        count = tl.sum(tl.where(digit == crossing, counts, 0))
        prefix = (prefix << width) | crossing.to(tl.uint64)
    return prefix, rank, count


@triton.jit
def magnitude(prefix, KEY: tl.constexpr):
    """The number whose key is a complete prefix, as float64."""
    if KEY == tl.float64:
        result = prefix.to(tl.float64, bitcast=True)
    else:
        result = prefix.to(tl.uint32).to(tl.float32, bitcast=True).to(tl.float64)
    return result


@triton.jit(do_not_specialize=["P"])
def _count_digit_kernel(
    rows_ptr, chunks_ptr,  # (T, 16) int64, (P, 2) int32: tensor, number of the chunk in it
    histograms_ptr, ranks_ptr,  # (R, ALL_ROUNDS, 2048) int64, (R,) int64
    work_ptr,  # (R, 8) float64 of which column 0 must be 2, or None
    nan_ptr,  # one int32 that counts NaNs, or None
    P,
    W: tl.constexpr, KEY: tl.constexpr, ROUND: tl.constexpr, ALL_ROUNDS: tl.constexpr, BITS: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    SHIFT: tl.constexpr = BITS - 11 * ROUND - 11 if BITS - 11 * ROUND - 11 > 0 else 0
    WIDTH: tl.constexpr = BITS - 11 * ROUND - SHIFT
    digits = tl.arange(0, BINS)
    for p in range(tl.program_id(0), P, tl.num_programs(0)):
        row = tl.load(chunks_ptr + p * 2)
        scope = tl.load(rows_ptr + row * COLUMNS + SCOPE)
        wanted = scope >= 0
        if work_ptr is not None:
            wanted = tl.load(work_ptr + scope * 8, mask=wanted, other=0.0) == 2
        if wanted:
            start = tl.load(chunks_ptr + p * 2 + 1).to(tl.int64) * CHUNK
            N = tl.load(rows_ptr + row * COLUMNS + NUMEL)
            w_ptr = pointer(rows_ptr, row, WEIGHT, W, False)
            of_scope_ptr = histograms_ptr + scope * ALL_ROUNDS * BINS
            prefix, _, _ = descend(of_scope_ptr, tl.load(ranks_ptr + scope), ROUND, BITS)
            counts = tl.zeros((BINS,), dtype=tl.int32)
            nans = tl.zeros((BLOCK,), dtype=tl.int32)
            for first in range(start, tl.minimum(start + CHUNK, N), BLOCK):
                n = first + tl.arange(0, BLOCK)
                w = wide(tl.load(w_ptr + n, mask=n < N, other=0.0), KEY)
                keys = key(w, KEY)
                same = (n < N) & ((keys >> (SHIFT + WIDTH)).to(tl.uint64) == prefix)
                digit = ((keys >> SHIFT) & ((1 << WIDTH) - 1)).to(tl.int32)
                counts += tl.histogram(digit, BINS, mask=same)
                if nan_ptr is not None:
                    nans += (w != w).to(tl.int32)
            counts_ptr = of_scope_ptr + ROUND * BINS + digits
            tl.atomic_add(counts_ptr, counts.to(tl.int64), mask=counts != 0, sem="relaxed")
            if nan_ptr is not None:
                found = tl.sum(nans)
                tl.atomic_add(nan_ptr, found, mask=found != 0, sem="relaxed")


def count_digit(table, histograms, ranks, work, nan, number, key_type, programs) -> None:
    """Count digit `number` of the magnitudes that may hold their scope's rank; one launch over a table."""
    if not table.scoped:
        return
    P = table.chunks.shape[0]
    _count_digit_kernel[(min(P, programs),)](
        table.rows, table.chunks, histograms, ranks, work, nan, P,
        W=element(table.dtypes[0]), KEY=key_type, ROUND=number, ALL_ROUNDS=histograms.shape[1],
        BITS=63 if key_type == tl.float64 else 31, CHUNK=table.chunk, BLOCK=2048, num_warps=8,
    )  # fmt: skip
