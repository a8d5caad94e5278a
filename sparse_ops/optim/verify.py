"""The debug switch of a sweep: threshold, coefficients and masks of one step again, exactly, from the weights."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sparse_ops.masks import PackedMask
from sparse_ops.ops.hypersparse_loss import KNEE
from sparse_ops.ops.hypersparse_sums import hypersparse_sums
from sparse_ops.ops.kth_magnitude import kth_magnitude


def _require(agrees: bool, message: str) -> None:
    if not agrees:
        raise AssertionError(message)


def masks_hold(named: Iterable[tuple[str, Tensor, PackedMask]]) -> None:
    """AssertionError naming a weight that is not zero where its mask is."""
    for name, weight, mask in named:
        stray = weight.detach()[~mask.to_dense()].count_nonzero().item()
        _require(stray == 0, f"{name}: {stray} pruned weights are not zero")


def scope_holds(
    row: int,
    weights: Sequence[Tensor],
    rank: int,
    tolerance: float,
    largest: float,
    threshold: float,
    scale: float,
    ratio: float,
) -> None:
    """AssertionError where the threshold is not the exact one, or scale and ratio do not belong to it.

    tolerance: the largest |ds/s| that is corrected to second order, which leaves less than its cube.
    largest: what scale and scale * ratio may be; above it both are 0, as they are for a threshold of 0.
    """
    expected = kth_magnitude(weights, rank).item()
    _require(threshold == expected, f"scope {row}: the threshold is {threshold}, exactly it is {expected}")
    exact_scale = KNEE / threshold if threshold else math.inf
    s = torch.tensor(exact_scale, dtype=torch.float64, device=weights[0].device)
    N, A = hypersparse_sums(weights, s)[:2].tolist()
    if not (exact_scale <= largest and exact_scale * N / A <= largest):
        _require(scale == ratio == 0, f"scope {row}: threshold {threshold}, but scale {scale} and ratio {ratio}")
        return
    _require(math.isclose(scale, exact_scale, rel_tol=1e-12), f"scope {row}: the scale is {scale}")
    allowed = max(1e-6, tolerance**3)
    _require(math.isclose(ratio, N / A, rel_tol=allowed), f"scope {row}: the ratio is {ratio}, exactly it is {N / A}")
