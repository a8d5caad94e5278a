"""sweep_observe_ in plain PyTorch."""

from torch import Tensor

from sparse_ops.reference import sweep


def sweep_observe_(
    weights: list[Tensor],
    masks: list[Tensor],
    scopes: list[int],
    coefficients: Tensor,
    brackets: Tensor,
    statistics: Tensor,
    candidates: Tensor,
) -> None:
    """weights are 1-D, in storage order."""
    for i, (w, scope) in enumerate(zip(weights, scopes, strict=True)):
        keep = sweep.bits_of(masks, i, w.numel())
        if keep is not None:
            w.masked_fill_(~keep, 0.0)
        if scope >= 0:
            sweep.observe(w, coefficients[scope, 2].item(), brackets[scope], statistics[scope], candidates[scope])
