"""Soft thresholding per group and its gradients: a program a chunk of a group, groups being runs of storage."""

import triton
import triton.language as tl

from .partials import add_compensated, store_sum
from .tiles import compute, element, rounded, wide

CHUNK = 16384  # elements of a program; a group of at most as many is reduced and written by one program


@triton.jit
def signs(w):
    """1, -1, and w itself where it is 0 or NaN."""
    return tl.where(w > 0, 1.0, tl.where(w < 0, -1.0, w)).to(w.dtype)


@triton.jit
def passing(dy, rest, ELU: tl.constexpr):
    """What passes of a gradient: all above the threshold, below it nothing or exp(rest)."""
    below = tl.zeros_like(dy)
    if ELU:
        below = dy * tl.exp(tl.minimum(rest, 0.0))
    return tl.where(rest <= 0, below, dy)


@triton.jit
def sum_magnitudes(w_ptr, size, position, partials_ptr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr):
    """Store the sum of |w| of `size` elements in partials[position]."""
    total = tl.zeros((BLOCK,), dtype=COMPUTE)
    error = tl.zeros((BLOCK,), dtype=COMPUTE)
    for first in range(0, size, BLOCK):
        n = first + tl.arange(0, BLOCK)
        u = tl.abs(wide(tl.load(w_ptr + n, mask=n < size, other=0.0), COMPUTE))
        total, error = add_compensated(total, error, u)
    store_sum(partials_ptr, position, total, error)


@triton.jit
def sum_gradients(
    g_ptr, w_ptr, t, size, position, partials_ptr, ELU: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr
):
    """Store -sum g' sign(w) of `size` elements in partials[position], g' being what passes of g."""
    total = tl.zeros((BLOCK,), dtype=COMPUTE)
    error = tl.zeros((BLOCK,), dtype=COMPUTE)
    for first in range(0, size, BLOCK):
        n = first + tl.arange(0, BLOCK)
        w = wide(tl.load(w_ptr + n, mask=n < size, other=0.0), COMPUTE)
        g = wide(tl.load(g_ptr + n, mask=n < size, other=0.0), COMPUTE)
        total, error = add_compensated(total, error, -passing(g, tl.abs(w) - t, ELU) * signs(w))
    store_sum(partials_ptr, position, total, error)


@triton.jit
def chunk(N, C, CHUNK: tl.constexpr):
    """Group, first element and number of elements of this program's chunk; each group has N elements, C chunks."""
    p = tl.program_id(0).to(tl.int64)
    start = p % C * CHUNK
    return p // C, p // C * N + start, tl.minimum(N - start, CHUNK).to(tl.int32)


@triton.jit
def _partial_sums_kernel(
    g_ptr, w_ptr,  # (G, N); g None: sums of magnitudes
    levels_ptr,  # (G, 3) float64
    partials_ptr,  # (G, C) float64
    N, C,
    ELU: tl.constexpr, COMPUTE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group, first, size = chunk(N, C, CHUNK)
    if g_ptr is None:
        sum_magnitudes(w_ptr + first, size, tl.program_id(0), partials_ptr, COMPUTE, BLOCK)
    else:
        t = tl.load(levels_ptr + group * 3).to(COMPUTE)
        sum_gradients(g_ptr + first, w_ptr + first, t, size, tl.program_id(0), partials_ptr, ELU, COMPUTE, BLOCK)


@triton.jit
def _combine_kernel(
    partials_ptr, thresholds_ptr,  # (G, C), (G,) float64; thresholds None: the sums themselves
    levels_ptr, sums_ptr,  # one of them is written
    C,
    COMPUTE: tl.constexpr, RELATIVE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0).to(tl.int64)
    lanes = tl.zeros((LANES,), dtype=tl.float64)
    if RELATIVE:
        for first in range(0, C, LANES):
            c = first + tl.arange(0, LANES)
            lanes += tl.load(partials_ptr + group * C + c, mask=c < C, other=0.0)
    total = tl.sum(lanes)
    if thresholds_ptr is None:
        tl.store(sums_ptr + group, total)
    else:
        given = tl.load(thresholds_ptr + group)
        t = given
        by_magnitude = given * 0
        slope = tl.full((), 1.0, tl.float64)
        if RELATIVE:
            t = given * total
            by_magnitude = given
            slope = total
        tl.store(levels_ptr + group * 3, t.to(COMPUTE).to(tl.float64))
        tl.store(levels_ptr + group * 3 + 1, by_magnitude)
        tl.store(levels_ptr + group * 3 + 2, slope)


@triton.jit
def _soft_threshold_kernel(
    w_ptr, y_ptr,  # (G, N)
    levels_ptr,  # (G, 3) float64
    N, C,
    Y: tl.constexpr, COMPUTE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group, start, size = chunk(N, C, CHUNK)
    t = tl.load(levels_ptr + group * 3).to(COMPUTE)
    for first in range(0, size, BLOCK):
        n = first + tl.arange(0, BLOCK)
        w = wide(tl.load(w_ptr + start + n, mask=n < size, other=0.0), COMPUTE)
        rest = tl.abs(w) - t
        tl.store(y_ptr + start + n, rounded(tl.where(rest <= 0, 0.0, rest * signs(w)), Y), mask=n < size)


@triton.jit
def _soft_threshold_backward_kernel(
    g_ptr, w_ptr, dw_ptr,  # (G, N)
    levels_ptr, sums_ptr,  # (G, 3), (G,) float64
    partials_ptr,  # (G, C) float64: written unless RELATIVE
    N, C,
    W: tl.constexpr, COMPUTE: tl.constexpr, RELATIVE: tl.constexpr, ELU: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group, start, size = chunk(N, C, CHUNK)
    t = tl.load(levels_ptr + group * 3).to(COMPUTE)
    pull = tl.zeros((), dtype=COMPUTE)
    if RELATIVE:
        pull = (tl.load(sums_ptr + group) * tl.load(levels_ptr + group * 3 + 1)).to(COMPUTE)
    total = tl.zeros((BLOCK,), dtype=COMPUTE)
    error = tl.zeros((BLOCK,), dtype=COMPUTE)
    for first in range(0, size, BLOCK):
        n = first + tl.arange(0, BLOCK)
        w = wide(tl.load(w_ptr + start + n, mask=n < size, other=0.0), COMPUTE)
        g = passing(wide(tl.load(g_ptr + start + n, mask=n < size, other=0.0), COMPUTE), tl.abs(w) - t, ELU)
        if not RELATIVE:
            total, error = add_compensated(total, error, -g * signs(w))
        tl.store(dw_ptr + start + n, rounded(g + pull * signs(w), W), mask=n < size)
    if not RELATIVE:
        store_sum(partials_ptr, tl.program_id(0), total, error)


def programs(elements, G):
    """How many programs cover G groups, each of which leaves one float64 sum."""
    return G * triton.cdiv(elements // max(G, 1), CHUNK)


def _sizes(w, levels, sums):
    G, P = levels.shape[0], sums.numel()
    N = w.numel() // G if G else 0
    return G, P, N, P // G if G else 0, {"CHUNK": CHUNK, "BLOCK": min(1024, max(16, triton.next_power_of_2(N)))}


def soft_threshold(w, thresholds, relative, y, levels, sums) -> None:
    """Write y and levels; sums is work memory, one float64 for each of `programs`."""
    G, P, N, C, constants = _sizes(w, levels, sums)
    COMPUTE = compute(w.dtype)
    if relative and P:
        _partial_sums_kernel[(P,)](None, w, None, sums, N, C, ELU=False, COMPUTE=COMPUTE, **constants)
    if G:
        _combine_kernel[(G,)](sums, thresholds, levels, None, C, COMPUTE=COMPUTE, RELATIVE=relative, LANES=128)
    if P:
        _soft_threshold_kernel[(P,)](w, y, levels, N, C, Y=element(w.dtype), COMPUTE=COMPUTE, **constants)


def soft_threshold_backward(g, w, levels, relative, elu, dw, by_threshold, sums) -> None:
    """Write dw and the gradient by each group's threshold; sums is work memory, one float64 for each of `programs`."""
    G, P, N, C, constants = _sizes(w, levels, sums)
    types = {"COMPUTE": compute(w.dtype), "ELU": elu}

    def combine() -> None:
        if G:
            _combine_kernel[(G,)](sums, None, None, by_threshold, C, COMPUTE=types["COMPUTE"], RELATIVE=True, LANES=128)

    if relative:
        if P:
            _partial_sums_kernel[(P,)](g, w, levels, sums, N, C, **types, **constants)
        combine()
    if P:
        _soft_threshold_backward_kernel[(P,)](
            g, w, dw, levels, by_threshold, sums, N, C, W=element(w.dtype), RELATIVE=relative, **types, **constants
        )
    if not relative:
        combine()
