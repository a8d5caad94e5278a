"""N, T0, T1 and T2 of many tensors at a scale that is read on the device; chunks are summed in a fixed order."""

import triton
import triton.language as tl

from .partials import add_partials
from .radix import descend, magnitude
from .sweep import no_sums, observe_sums, store_sums
from .tiles import WEIGHT, chunk_of, compute, element, pointer, split_scale, wide


@triton.jit
def next_scale(threshold, largest):
    """s = 0.6585 / threshold, where the third derivative of tanh vanishes; 0 where it is not finite."""
    s = 0.6585 / tl.where(threshold > 0, threshold, 1.0)
    return tl.where((threshold > 0) & (s <= largest), s, 0.0)


@triton.jit
def known_threshold(
    work_ptr, histograms_ptr, ranks_ptr, scope, ROUNDS: tl.constexpr, BITS: tl.constexpr, KEY: tl.constexpr
):
    """The threshold of a scope in need of exact sums: proven by its candidates (flag 1) or found by radix (flag 2)."""
    threshold = tl.load(work_ptr + scope * 8 + 3)
    if tl.load(work_ptr + scope * 8) == 2:
        prefix, _, _ = descend(histograms_ptr + scope * ROUNDS * 2048, tl.load(ranks_ptr + scope), ROUNDS, BITS)
        threshold = magnitude(prefix, KEY)
    return threshold


@triton.jit(do_not_specialize=["P", "P_all", "first_p"])
def _hypersparse_sums_kernel(
    rows_ptr, chunks_ptr,  # (T, 16) int64, (P, 2) int32: tensor, number of the chunk in it
    scale_ptr,  # one float64, or None: from the threshold of each scope that asks for its sums
    work_ptr, histograms_ptr, ranks_ptr,  # as in sweep_finish, or None
    partials_ptr,
    P, P_all, first_p,
    largest: tl.float64,
    W: tl.constexpr, COMPUTE: tl.constexpr, KEY: tl.constexpr, ROUNDS: tl.constexpr, BITS: tl.constexpr,
    ALIGNED: tl.constexpr, CHUNK: tl.constexpr, EIGHTS: tl.constexpr,
):  # fmt: skip
    tile = tl.arange(0, EIGHTS)[:, None] * 8 + tl.arange(0, 8)[None, :]
    for p in range(tl.program_id(0), P, tl.num_programs(0)):
        row, scope, start, size = chunk_of(rows_ptr, chunks_ptr, p, ALIGNED, CHUNK)
        wanted = scope >= 0
        if work_ptr is not None:
            wanted = tl.load(work_ptr + scope * 8, mask=wanted, other=0.0) > 0
        if wanted:
            if work_ptr is not None:
                threshold = known_threshold(work_ptr, histograms_ptr, ranks_ptr, scope, ROUNDS, BITS, KEY)
                scale = next_scale(threshold, largest)
            else:
                scale = tl.load(scale_ptr)
            s, t = split_scale(scale, COMPUTE)
            w_ptr = pointer(rows_ptr, row, WEIGHT, W, ALIGNED) + start
            sums = no_sums(EIGHTS, COMPUTE)
            for first in range(0, size, EIGHTS * 8):
                n = first + tile
                u = tl.abs(wide(tl.load(w_ptr + n, mask=n < size, other=0.0), COMPUTE))
                sums = observe_sums(sums, u, u * s * t)
            store_sums(sums, size, partials_ptr, P_all, first_p + p)


def exact_sums(table, scale, work, histograms, ranks, largest, partials, key_type, programs) -> None:
    """One launch over a table: into partials, the sums at `scale`, or of the scopes of which work asks for them."""
    if not table.scoped:
        return
    P = table.chunks.shape[0]
    _hypersparse_sums_kernel[(min(P, programs),)](
        table.rows, table.chunks, scale, work, histograms, ranks, partials, P, partials.shape[1], table.first, largest,
        W=element(table.dtypes[0]), COMPUTE=compute(table.dtypes[0]), KEY=key_type,
        ROUNDS=6 if key_type == tl.float64 else 3, BITS=63 if key_type == tl.float64 else 31,
        ALIGNED=table.aligned, CHUNK=table.chunk, EIGHTS=128, num_warps=8,
    )  # fmt: skip


def hypersparse_sums(plan, scale, statistics) -> None:
    """Add the sums of a plan's tensors, which have scope 0, to statistics (1, 7), zero before."""
    partials = plan.partials()
    for table in plan.tables:
        exact_sums(table, scale, None, None, None, 0.0, partials, None, table.chunks.shape[0])
    add_partials(partials, plan.chunk_scopes, statistics, None)
