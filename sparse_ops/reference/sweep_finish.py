"""sweep_finish_ in plain PyTorch: the exact threshold, the next coefficients and the next bracket of each scope."""

import math

import torch
from torch import Tensor

from sparse_ops.reference.sweep import compute_dtype

SHAPE = 0.6585  # s * threshold: tanh''' vanishes there


def exact_sums(weights: list[Tensor], s: float) -> tuple[float, float]:
    """N = sum |w| and A = sum tanh(s |w|), each term in the weight's compute type, added in float64."""
    us = [w.to(compute_dtype(w)).abs() for w in weights]
    return sum(u.double().sum().item() for u in us), sum(torch.tanh(s * u).double().sum().item() for u in us)


def proven(n: int, k: int, bracket: list[float], above: int, count: int, candidates: Tensor) -> float | None:
    """The k-th smallest magnitude of n where the counts prove it, None where the bracket missed or overflowed."""
    low, high = bracket
    below = n - above - count
    tiny = torch.finfo(candidates.dtype).smallest_normal * torch.finfo(candidates.dtype).eps
    if k <= below:
        return 0.0 if low <= tiny else None
    if k > below + count:
        return None
    first = torch.tensor(low, dtype=torch.float64).to(candidates.dtype)
    if first.item() < low:
        first = torch.nextafter(first, first.new_tensor(math.inf))
    if torch.nextafter(first, first.new_tensor(math.inf)).item() >= high:
        return first.item()  # one number fits into the bracket: its multiplicity does not matter
    if count > candidates.numel():
        return None
    return candidates[:count].kthvalue(k - below).values.item()


def next_bracket(
    n: int, threshold: float, drift: float, hit: bool, bracket: list[float], count: int, candidates: Tensor
) -> tuple[float, float]:
    """Around the threshold that moves on as it did, as wide as it moved, with n/8192 to n/128 candidates."""
    if threshold == 0:
        tiny = torch.finfo(candidates.dtype).smallest_normal * torch.finfo(candidates.dtype).eps
        return tiny, tiny  # all zeros lie below, and their count proves the next zero
    low, high = bracket
    most = min(max(n / 128, 128), candidates.numel() / 2)
    least = min(max(n / 8192, 32), most)
    if hit:
        half = max(3 * abs(drift), (0.625 if count < least else 0.45) * (high - low))
    else:
        half = min(max(2 * abs(drift), 0.01 * threshold), 0.05 * threshold)
    if count > 0 and high > low and (hit or count > candidates.numel()):
        half = min(half, 0.5 * most * (high - low) / count)
    low = max(threshold + drift - half, 0.0)
    return low, max(threshold + drift + half, math.nextafter(max(low, threshold + drift), math.inf))


def sweep_finish_(
    weights: list[Tensor],
    scopes: list[int],
    ranks: list[int],
    tolerance: float,
    exact: bool,
    coefficients: Tensor,
    brackets: Tensor,
    statistics: Tensor,
    candidates: Tensor,
    report: Tensor,
) -> None:
    for r, k in enumerate(ranks):
        N, T0, T1, T2, above, count, swept = statistics[r].tolist()
        statistics[r] = 0
        if k == 0 or (swept == 0 and not exact):
            continue  # nothing was swept: the optimiser skipped this step
        mine = [w for w, scope in zip(weights, scopes, strict=True) if scope == r]
        n = sum(w.numel() for w in mine)
        old, s_old = report[r, 0].item(), coefficients[r, 2].item()
        complete = not exact and swept == n and math.isfinite(N)
        report[r, 6] += 1
        if not exact and not math.isfinite(N):
            report[r, 7] = 1
            continue

        known = proven(n, k, brackets[r].tolist(), int(above), int(count), candidates[r]) if complete else None
        threshold = known
        if threshold is None:
            magnitudes = torch.cat([w.to(candidates.dtype).abs() for w in mine])
            threshold = magnitudes.kthvalue(k).values.item()
        s = SHAPE / threshold if threshold > 0 else 0.0
        s = s if s <= torch.finfo(candidates.dtype).max else 0.0
        ds = (s - s_old) / s_old if s_old > 0 else 0.0
        steady = complete and (s == s_old or (s > 0 and s_old > 0 and abs(ds) <= tolerance))
        if steady:
            A = T0 + (s - s_old) * T1 - (s - s_old) ** 2 * T2
        else:
            N, A = exact_sums(mine, s)
            if not (math.isfinite(threshold) and math.isfinite(N)):
                report[r, 7] = 1
                continue
        ratio = N / A if s > 0 and A > 0 else 0.0
        if not s * ratio <= torch.finfo(candidates.dtype).max:
            s = ratio = 0.0

        hit = known is not None
        drift = threshold - old
        if exact or not abs(drift) < 0.5 * min(threshold, old):
            drift = 0.0  # a jump, not a movement
        low, high = next_bracket(n, threshold, drift, hit, brackets[r].tolist(), int(count), candidates[r])
        coefficients[r, 2:] = coefficients.new_tensor([s, ratio])
        brackets[r] = brackets.new_tensor([low, high])
        passes = report[r, 5].item() + (not (hit and steady))
        report[r, :6] = report.new_tensor([threshold, old, hit, count, ds, passes])
        report[r, 7] = 0
