"""What the sweeps share: penalty gradients, and the statistics of the new weights while these are in registers."""

import triton
import triton.language as tl

from .partials import add_compensated, statistics_terms, store_sum
from .tiles import sech_squared


@triton.jit
def coefficients(coefficients_ptr, scope, TYPE: tl.constexpr):
    """strength, kept strength, scale s and the pull strength * s * N/A of a scope as scalars; all 0 for scope -1."""
    row_ptr = coefficients_ptr + scope * 4
    strength = tl.load(row_ptr, mask=scope >= 0, other=0.0)
    kept_strength = tl.load(row_ptr + 1, mask=scope >= 0, other=0.0)
    scale = tl.load(row_ptr + 2, mask=scope >= 0, other=0.0)
    ratio = tl.load(row_ptr + 3, mask=scope >= 0, other=0.0)
    return strength.to(TYPE), kept_strength.to(TYPE), scale.to(TYPE), (strength * scale * ratio).to(TYPE)


@triton.jit
def penalty_gradient(w, grouped, strength, kept_strength, scale, pull, PENALTY: tl.constexpr):
    """The derivative of the penalty at w; the coefficients are scalars of w's dtype."""
    if PENALTY == "l2":
        gradient = 2 * strength * w
    elif PENALTY == "growing_l2":
        gradient = tl.where(grouped, strength, kept_strength) * w
    elif PENALTY == "l1":
        gradient = tl.where(w > 0, strength, tl.where(w < 0, -strength, 0.0))
    else:
        gradient = tl.where(w > 0, pull, tl.where(w < 0, -pull, 0.0)) * sech_squared(scale * tl.abs(w))
    return gradient


@triton.jit
def bracket(brackets_ptr, scope, TYPE: tl.constexpr):
    """low and high of a scope, rounded up to TYPE so that magnitudes compare exactly in TYPE; infinite for scope -1."""
    low = tl.load(brackets_ptr + scope * 2, mask=scope >= 0, other=float("inf"))
    high = tl.load(brackets_ptr + scope * 2 + 1, mask=scope >= 0, other=float("inf"))
    return _rounded_up(low, TYPE), _rounded_up(high, TYPE)


@triton.jit
def _rounded_up(bound, TYPE: tl.constexpr):
    near = tl.maximum(bound, 0.0).to(TYPE)
    if TYPE == tl.float32:
        next_up = (near.to(tl.int32, bitcast=True) + 1).to(tl.float32, bitcast=True)
        near = tl.where(near.to(tl.float64) < bound, next_up, near)
    return near


@triton.jit
def no_sums(EIGHTS: tl.constexpr, TYPE: tl.constexpr):
    """Empty sums of a program: four compensated sums and the count of |w| >= high, one lane per row of a tile."""
    zero = tl.zeros((EIGHTS,), dtype=TYPE)
    return zero, zero, zero, zero, zero, zero, zero, zero, tl.zeros((EIGHTS,), dtype=tl.int32)


@triton.jit
def observe_sums(sums, u, x):
    """The sums with those of a tile u = |w| (0 where not valid), x = s u, added, without the counts."""
    n, n_error, t0, t0_error, t1, t1_error, t2, t2_error, above = sums
    n_term, t0_term, t1_term, t2_term = statistics_terms(u, x)
    n, n_error = add_compensated(n, n_error, n_term)
    t0, t0_error = add_compensated(t0, t0_error, t0_term)
    t1, t1_error = add_compensated(t1, t1_error, t1_term)
    t2, t2_error = add_compensated(t2, t2_error, t2_term)
    return n, n_error, t0, t0_error, t1, t1_error, t2, t2_error, above


@triton.jit
def observe(sums, u, valid, scale, low, high, candidates_ptr, count_ptr, capacity):
    """The sums with those of a tile u = |w| (0 where not valid) added; candidates are appended to their buffer."""
    n, n_error, t0, t0_error, t1, t1_error, t2, t2_error, above = observe_sums(sums, u, scale * u)
    above += tl.sum(((u >= high) & valid).to(tl.int32), 1)
    _append(candidates_ptr, count_ptr, capacity, u, (u >= low) & (u < high) & valid)
    return n, n_error, t0, t0_error, t1, t1_error, t2, t2_error, above


@triton.jit
def _append(candidates_ptr, count_ptr, capacity, u, chosen):
    """Append the chosen elements of a tile; the count is a float64 of exact integers and goes on beyond the end."""
    chosen = chosen.to(tl.int32)
    of_row = tl.sum(chosen, 1)
    count = tl.sum(of_row, 0)
    if count > 0:
        base = tl.atomic_add(count_ptr, count.to(tl.float64), sem="relaxed").to(tl.int64)
        before_row = tl.cumsum(of_row, 0) - of_row
        position = base + before_row[:, None] + (tl.cumsum(chosen, 1) - chosen)
        tl.store(candidates_ptr + position, u, mask=(chosen != 0) & (position < capacity))


@triton.jit
def store_sums(sums, swept, partials_ptr, P, p):
    """Store a program's sums and its number of weights as column p of the (6, P) partial sums."""
    n, n_error, t0, t0_error, t1, t1_error, t2, t2_error, above = sums
    store_sum(partials_ptr, p, n, n_error)
    store_sum(partials_ptr, P + p, t0, t0_error)
    store_sum(partials_ptr, 2 * P + p, t1, t1_error)
    store_sum(partials_ptr, 3 * P + p, t2, t2_error)
    tl.store(partials_ptr + 4 * P + p, tl.sum(above).to(tl.float64))
    tl.store(partials_ptr + 5 * P + p, swept.to(tl.float64))
