"""The exact k-th smallest magnitude of many tensors: digits of all are counted, one program reads the result."""

import triton
import triton.language as tl

from .radix import count_digit, descend, magnitude
from .tiles import compute, element, rounded


@triton.jit
def _kth_magnitude_kernel(
    histograms_ptr, ranks_ptr,  # (1, ALL_ROUNDS, 2048) int64, (1,) int64
    nan_ptr, out_ptr,  # one int32 that counts NaNs, one float
    KEY: tl.constexpr, ALL_ROUNDS: tl.constexpr, BITS: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    prefix, _, _ = descend(histograms_ptr, tl.load(ranks_ptr), ALL_ROUNDS, BITS)
    result = magnitude(prefix, KEY)
    result = tl.where(tl.load(nan_ptr) > 0, float("nan"), result)
    tl.store(out_ptr, rounded(result, OUT))


def kth_magnitude(plan, histograms, ranks, nan, out) -> None:
    """Write the magnitude of rank ranks[0] over a plan's tensors into out; histograms and nan are zero before."""
    key_type = compute(out.dtype)
    for number in range(histograms.shape[1]):
        for table in plan.tables:
            count_digit(table, histograms, ranks, None, nan if number == 0 else None, number, key_type, plan.programs)
    _kth_magnitude_kernel[(1,)](
        histograms, ranks, nan, out, KEY=key_type, ALL_ROUNDS=histograms.shape[1],
        BITS=63 if key_type == tl.float64 else 31, OUT=element(out.dtype), num_warps=8,
    )  # fmt: skip
