"""Packed masks with an exact number of zeros: the threshold by radix selection, ties by their logical place."""

import triton
import triton.language as tl

from .radix import count_digit, descend
from .tiles import COLUMNS, MASK, NUMEL, ORDER, WEIGHT, element, key, pointer


@triton.jit(do_not_specialize=["P"])
def _count_ties_kernel(
    rows_ptr, chunks_ptr, histograms_ptr, ranks_ptr,
    ties_ptr,  # (P,) int64, one per chunk of all tables in the order of the list
    P,
    W: tl.constexpr, KEY: tl.constexpr, ALL_ROUNDS: tl.constexpr, BITS: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    threshold, _, _ = descend(histograms_ptr, tl.load(ranks_ptr), ALL_ROUNDS, BITS)
    for p in range(tl.program_id(0), P, tl.num_programs(0)):
        row = tl.load(chunks_ptr + p * 2)
        number = tl.load(chunks_ptr + p * 2 + 1).to(tl.int64)
        N = tl.load(rows_ptr + row * COLUMNS + NUMEL)
        w_ptr = pointer(rows_ptr, row, WEIGHT, W, False)
        ties = tl.zeros((BLOCK,), dtype=tl.int32)
        for first in range(number * CHUNK, tl.minimum(number * CHUNK + CHUNK, N), BLOCK):
            n = first + tl.arange(0, BLOCK)
            keys = key(tl.load(w_ptr + n, mask=n < N, other=0.0), KEY)
            ties += ((n < N) & (keys.to(tl.uint64) == threshold)).to(tl.int32)
        tl.store(ties_ptr + tl.load(rows_ptr + row * COLUMNS + ORDER) + number, tl.sum(ties).to(tl.int64))


@triton.jit(do_not_specialize=["P"])
def _ties_before_kernel(ties_ptr, P, BLOCK: tl.constexpr):
    before = tl.zeros((), dtype=tl.int64)
    for first in range(0, P, BLOCK):
        p = first + tl.arange(0, BLOCK)
        ties = tl.load(ties_ptr + p, mask=p < P, other=0)
        tl.store(ties_ptr + p, before + tl.cumsum(ties, 0) - ties, mask=p < P)
        before += tl.sum(ties)


@triton.jit(do_not_specialize=["P"])
def _write_masks_kernel(
    rows_ptr, chunks_ptr, histograms_ptr, ranks_ptr,
    ties_ptr,  # (P,) int64: ties in the chunks before
    P,
    W: tl.constexpr, KEY: tl.constexpr, ALL_ROUNDS: tl.constexpr, BITS: tl.constexpr, PRUNE_TIES: tl.constexpr,
    CHUNK: tl.constexpr, EIGHTS: tl.constexpr,
):  # fmt: skip
    threshold, pruned_ties, all_ties = descend(histograms_ptr, tl.load(ranks_ptr), ALL_ROUNDS, BITS)
    kept_ties = all_ties - pruned_ties
    lane = tl.arange(0, 8)[None, :]
    tile = tl.arange(0, EIGHTS)[:, None] * 8 + lane
    for p in range(tl.program_id(0), P, tl.num_programs(0)):
        row = tl.load(chunks_ptr + p * 2)
        number = tl.load(chunks_ptr + p * 2 + 1).to(tl.int64)
        N = tl.load(rows_ptr + row * COLUMNS + NUMEL)
        w_ptr = pointer(rows_ptr, row, WEIGHT, W, False)
        mask_ptr = pointer(rows_ptr, row, MASK, tl.uint8, False)
        before = tl.load(ties_ptr + tl.load(rows_ptr + row * COLUMNS + ORDER) + number)
        for first in range(number * CHUNK, tl.minimum(number * CHUNK + CHUNK, N), EIGHTS * 8):
            n = first + tile
            keys = key(tl.load(w_ptr + n, mask=n < N, other=0.0), KEY).to(tl.uint64)
            tied = (n < N) & (keys == threshold)
            keep = (n >= N) | (keys > threshold)
            if not PRUNE_TIES:
                of_row = tl.sum(tied.to(tl.int64), 1)
                place = before + (tl.cumsum(of_row, 0) - of_row)[:, None] + tl.cumsum(tied.to(tl.int64), 1)
                keep = keep | (tied & (place <= kept_ties))
                before += tl.sum(of_row)
            packed = tl.sum(keep.to(tl.int32) << lane, 1)
            eighth = first // 8 + tl.arange(0, EIGHTS)
            tl.store(mask_ptr + eighth, packed.to(tl.uint8), mask=eighth * 8 < N)


def magnitude_mask(plan, histograms, ranks, nan, ties, prune_ties) -> None:
    """Prune the ranks[0] >= 1 smallest magnitudes of all tensors of a plan; histograms and nan are zero before.

    ties: an int64 per chunk of all tables. Counts NaNs into nan; the masks mean nothing where there are any.
    """
    key_type = tl.float64 if histograms.shape[1] == 6 else tl.float32
    for number in range(histograms.shape[1]):
        for table in plan.tables:
            count_digit(table, histograms, ranks, None, nan if number == 0 else None, number, key_type, plan.programs)
    shared = {"KEY": key_type, "ALL_ROUNDS": histograms.shape[1], "BITS": 63 if key_type == tl.float64 else 31}
    buffers = histograms, ranks, ties
    if not prune_ties:
        for table in plan.tables:
            P = table.chunks.shape[0]
            _count_ties_kernel[(min(P, plan.programs),)](
                table.rows, table.chunks, *buffers, P, W=element(table.dtypes[0]), CHUNK=table.chunk, BLOCK=2048,
                num_warps=8, **shared,
            )  # fmt: skip
        _ties_before_kernel[(1,)](ties, ties.numel(), BLOCK=1024)
    for table in plan.tables:
        P = table.chunks.shape[0]
        _write_masks_kernel[(min(P, plan.programs),)](
            table.rows, table.chunks, *buffers, P, W=element(table.dtypes[0]), PRUNE_TIES=prune_ties,
            CHUNK=table.chunk, EIGHTS=256, num_warps=8, **shared,
        )  # fmt: skip
