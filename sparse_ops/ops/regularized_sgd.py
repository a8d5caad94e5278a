"""The op sparse_ops::regularized_sgd_: penalty, SGD update, mask and threshold statistics in one sweep."""

from typing import Any

import torch
from torch import Tensor

from sparse_ops import checks, extension, launch, tables
from sparse_ops.ops import sweep_operands as operands
from sparse_ops.reference import regularized_sgd as reference

OP = "regularized_sgd_"
torch.library.define(
    f"sparse_ops::{OP}",
    f"(Tensor(a!)[] weights, Tensor[] grads, Tensor(b!)[] momenta, {operands.STATE}, str penalty, float lr, "
    "float momentum, float dampening, float weight_decay, bool nesterov, bool maximize, bool first_step, "
    "Tensor? lr_tensor, Tensor? grad_scale, Tensor? found_inf) -> ()",
)


def check(
    weights: list[Tensor], grads: list[Tensor], momenta: list[Tensor], masks: list[Tensor], groups: list[Tensor],
    scopes: list[int], coefficients: Tensor, brackets: Tensor, statistics: Tensor, candidates: Tensor, penalty: str,
    lr: float, momentum: float, dampening: float, weight_decay: float, nesterov: bool, maximize: bool,
    first_step: bool, lr_tensor: Tensor | None, grad_scale: Tensor | None, found_inf: Tensor | None, *,
    tensors: bool = True,
) -> None:  # fmt: skip
    """Check the operands: the first half of the op and, since nothing is allocated, all of its fake."""
    if tensors:
        likes = {"grads": grads} | ({"momenta": momenta} if momentum != 0 else {})
        packed = {"masks": masks, "groups": groups}
        operands.check_tensors(OP, weights, scopes, coefficients.shape[0], likes, packed)
    operands.check_state(OP, weights, scopes, coefficients, brackets, statistics, candidates)
    operands.check_penalty(OP, penalty)
    operands.check_rate(OP, lr_tensor, weights)
    operands.check_scalar(OP, "grad_scale", grad_scale)
    operands.check_scalar(OP, "found_inf", found_inf)
    if momentum != 0 and len(momenta) != len(weights):
        raise ValueError(f"{OP}: {len(weights)} weights but {len(momenta)} momenta")
    if momentum == 0 and momenta:
        raise ValueError(f"{OP}: momentum is 0, so momenta must be an empty list, it has {len(momenta)} entries")
    if nesterov and (momentum == 0 or dampening != 0):
        raise ValueError(f"{OP}: nesterov needs momentum and no dampening, they are {momentum} and {dampening}")


@torch.library.register_fake(f"sparse_ops::{OP}")
def _fake(*arguments: Any) -> None:
    check(*arguments)


def _regularized_sgd_(weights: list[Tensor], grads: list[Tensor], momenta: list[Tensor], *rest: Any) -> None:
    if not weights:
        check(weights, grads, momenta, *rest)
        return
    backend = launch.backend(weights[0].device)
    changed = [*weights, *momenta, *rest[5:7]]
    if backend == "native":
        check(weights, grads, momenta, *rest, tensors=False)
        if operands.swept(extension.native().regularized_sgd_, check, weights, grads, momenta, *rest):
            torch.autograd.graph.increment_version(changed)
            return
    check(weights, grads, momenta, *rest)
    operands.check_apart(OP, "weights", weights)
    grads = [checks.like_storage(g, w) for g, w in zip(grads, weights, strict=True)]
    states = [checks.like_storage(m, w) for m, w in zip(momenta, weights, strict=True)] if momenta else []
    match backend:
        case "triton":
            from sparse_ops.kernels import partials, regularized_sgd

            masks, groups, scopes, coefficients, brackets, statistics, candidates, *rule, found_inf = rest
            with launch.on(weights[0].device):
                plan = tables.plan(weights, grads, masks, groups, [states] if states else [], scopes=scopes)
                sums = plan.partials()
                arguments = [coefficients, brackets, statistics, candidates, sums, *rule, found_inf]
                for table in plan.tables:
                    regularized_sgd.regularized_sgd(table, *arguments)
                partials.add_partials(sums, plan.chunk_scopes, statistics, found_inf)
        case "native":
            operands.accepted(OP, extension.native().regularized_sgd_(weights, grads, states, *rest))
        case "reference":
            flat = operands.flat
            reference.regularized_sgd_(flat(weights), flat(grads), flat(states), *rest)
    for m, state in zip(momenta, states, strict=True):
        if state is not m:
            m.copy_(state)
    torch.autograd.graph.increment_version(changed)


torch.library.impl(f"sparse_ops::{OP}", ("cpu", "cuda"), _regularized_sgd_)


def regularized_sgd_(
    weights: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    masks: list[Tensor],
    groups: list[Tensor],
    scopes: list[int],
    coefficients: Tensor,
    brackets: Tensor,
    statistics: Tensor,
    candidates: Tensor,
    *,
    penalty: str,
    lr: float | Tensor,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    first_step: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One SGD step over all weights, in place, with the penalty's gradient, masks and the threshold's statistics.

    weights: dense in memory, any floating dtype; halves are computed in float32 and rounded once. grads: read only,
    any floating dtype and strides. momenta: [] without momentum, else one per weight; not read when first_step. masks,
    groups: [] or one packed uint8 tensor per weight (empty where none), in storage order. scopes: the row of each
    weight in the tables, -1 without penalty and statistics. The tables are described in docs/architecture.md. penalty:
    none, l1, l2, growing_l2 or hypersparse (arXiv 2308.07163). lr: a number, or one in a tensor on the weights' device,
    which is read where the weights are. found_inf: where 1, nothing at all changes.
    ValueError or TypeError names the culprit. Not differentiable.
    """
    rate, lr_tensor = operands.split_rate(lr)
    run = _regularized_sgd_ if launch.unseen(weights) else torch.ops.sparse_ops.regularized_sgd_
    run(
        weights, grads, momenta, masks, groups, scopes, coefficients, brackets, statistics, candidates, penalty, rate,
        momentum, dampening, weight_decay, nesterov, maximize, first_step, lr_tensor, grad_scale, found_inf,
    )  # fmt: skip
