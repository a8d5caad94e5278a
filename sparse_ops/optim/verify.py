"""The debug switch of a sweep: threshold, coefficients and masks of one step again, exactly, from the weights."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sparse_ops.masks import PackedMask
from sparse_ops.ops.hypersparse_sums import hypersparse_sums
from sparse_ops.ops.kth_magnitude import kth_magnitude

SHAPE = 0.6585  # s * threshold


def _require(agrees: bool, message: str) -> None:
    if not agrees:
        raise AssertionError(message)


def masks_hold(named: Iterable[tuple[str, Tensor, PackedMask]]) -> None:
    """AssertionError naming a weight that is not zero where its mask is."""
    for name, weight, mask in named:
        stray = weight.detach()[~mask.to_dense()].count_nonzero().item()
        _require(stray == 0, f"{name}: {stray} pruned weights are not zero")


def scope_holds(
    row: int, weights: Sequence[Tensor], rank: int, tolerance: float, threshold: float, scale: float, ratio: float
) -> None:
    """AssertionError where the threshold is not the exact one, or scale and ratio do not belong to it.

    tolerance: the largest |ds/s| that is corrected to second order, which leaves less than its cube.
    """
    expected = kth_magnitude(weights, rank).item()
    _require(threshold == expected, f"scope {row}: the threshold is {threshold}, exactly it is {expected}")
    if threshold == 0:
        _require(scale == ratio == 0, f"scope {row}: threshold 0, but scale {scale} and ratio {ratio}")
        return
    _require(math.isclose(scale, SHAPE / threshold, rel_tol=1e-12), f"scope {row}: the scale is {scale}")
    exact_scale = torch.tensor(scale, dtype=torch.float64, device=weights[0].device)
    N, A = hypersparse_sums(weights, exact_scale)[:2].tolist()
    allowed = 1e-6 + tolerance**3
    _require(math.isclose(ratio, N / A, rel_tol=allowed), f"scope {row}: the ratio is {ratio}, exactly it is {N / A}")
