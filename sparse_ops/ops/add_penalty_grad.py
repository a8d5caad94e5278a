"""The op sparse_ops::add_penalty_grad_: the penalty's gradient for optimisers that have no sweep inside."""

from typing import Any

import torch
from torch import Tensor

from sparse_ops import checks, extension, launch, tables
from sparse_ops.ops import sweep_operands as operands
from sparse_ops.reference import add_penalty_grad as reference

OP = "add_penalty_grad_"
torch.library.define(
    f"sparse_ops::{OP}",
    "(Tensor(a!)[] grads, Tensor[] weights, Tensor[] groups, int[] scopes, Tensor coefficients, str penalty, "
    "Tensor? grad_scale) -> ()",
)


def _check(
    grads: list[Tensor],
    weights: list[Tensor],
    groups: list[Tensor],
    scopes: list[int],
    coefficients: Tensor,
    penalty: str,
    grad_scale: Tensor | None,
) -> None:
    """Check the operands: the first half of the op and, since nothing is allocated, all of its fake."""
    operands.check_dense(OP, "weights", weights)
    checks.same_device(OP, "weights", weights)
    operands.check_like(OP, "grads", grads, weights)
    operands.check_packed(OP, "groups", groups, weights)
    operands.check_table(OP, "coefficients", coefficients, coefficients.shape[0], 4, weights)
    operands.check_scopes(OP, scopes, weights, coefficients.shape[0])
    operands.check_penalty(OP, penalty)
    operands.check_scalar(OP, "grad_scale", grad_scale)
    for i, grad in enumerate(grads):
        if any(stride == 0 and size > 1 for stride, size in zip(grad.stride(), grad.shape, strict=True)):
            raise ValueError(f"{OP}: grads[{i}] is expanded, strides {grad.stride()} for {tuple(grad.shape)}")


@torch.library.register_fake(f"sparse_ops::{OP}")
def _fake(*arguments: Any) -> None:
    _check(*arguments)


@torch.library.impl(f"sparse_ops::{OP}", ("cpu", "cuda"))
def _add_penalty_grad_(grads: list[Tensor], weights: list[Tensor], *rest: Any) -> None:
    _check(grads, weights, *rest)
    operands.check_apart(OP, "grads", grads)
    if not grads:
        return
    walked = [checks.like_storage(g, w) for g, w in zip(grads, weights, strict=True)]
    match launch.backend(weights[0].device):
        case "triton":
            from sparse_ops.kernels import add_penalty_grad

            groups, scopes, *rule = rest
            with launch.on(weights[0].device):
                for table in tables.plan(weights, walked, groups=groups, scopes=scopes).tables:
                    add_penalty_grad.add_penalty_grad(table, *rule)
        case "native":
            extension.native().add_penalty_grad_(walked, weights, *rest)
        case "reference":
            reference.add_penalty_grad_(operands.flat(walked), operands.flat(weights), *rest)
    for grad, new in zip(grads, walked, strict=True):
        if new is not grad:
            grad.copy_(new)
    torch.autograd.graph.increment_version(grads)


def add_penalty_grad_(
    grads: list[Tensor],
    weights: list[Tensor],
    groups: list[Tensor],
    scopes: list[int],
    coefficients: Tensor,
    *,
    penalty: str,
    grad_scale: Tensor | None = None,
) -> None:
    """grads += grad_scale * penalty'(weights), in place; grad_scale counts as 1 where it is None.

    grads: one per weight, any floating dtype and strides, not expanded. weights: dense in memory, only read. groups: []
    or one packed uint8 tensor per weight (empty where none). scopes: the row of each weight in the coefficients, -1
    without penalty. The penalties and their columns are listed in docs/architecture.md. Not differentiable.
    """
    torch.ops.sparse_ops.add_penalty_grad_(grads, weights, groups, scopes, coefficients, penalty, grad_scale)
