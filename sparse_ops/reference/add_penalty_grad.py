"""add_penalty_grad_ in plain PyTorch."""

from torch import Tensor

from sparse_ops.reference import sweep


def add_penalty_grad_(
    grads: list[Tensor],
    weights: list[Tensor],
    groups: list[Tensor],
    scopes: list[int],
    coefficients: Tensor,
    penalty: str,
    grad_scale: Tensor | None,
) -> None:
    """grads and weights are 1-D, in the weights' storage order."""
    for i, (grad, weight, scope) in enumerate(zip(grads, weights, scopes, strict=True)):
        if scope < 0:
            continue
        dtype = sweep.compute_dtype(weight)
        group = sweep.bits_of(groups, i, weight.numel())
        added = sweep.penalty_gradient(weight.to(dtype), coefficients[scope], penalty, group)
        if grad_scale is not None:
            added = added * grad_scale.to(dtype)
        grad.copy_(grad.to(dtype) + added)
