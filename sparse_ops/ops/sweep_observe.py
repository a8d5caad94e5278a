"""The op sparse_ops::sweep_observe_: masks and threshold statistics for optimisers that have no sweep inside."""

from typing import Any

import torch
from torch import Tensor

from sparse_ops import extension, launch, tables
from sparse_ops.ops import sweep_operands as operands
from sparse_ops.reference import sweep_observe as reference

OP = "sweep_observe_"
torch.library.define(
    f"sparse_ops::{OP}",
    "(Tensor(a!)[] weights, Tensor[] masks, int[] scopes, Tensor coefficients, Tensor brackets, "
    "Tensor(y!) statistics, Tensor(z!) candidates) -> ()",
)


def _check(
    weights: list[Tensor],
    masks: list[Tensor],
    scopes: list[int],
    coefficients: Tensor,
    brackets: Tensor,
    statistics: Tensor,
    candidates: Tensor,
    *,
    tensors: bool = True,
) -> None:
    """Check the operands: the first half of the op and, since nothing is allocated, all of its fake."""
    if tensors:
        operands.check_tensors(OP, weights, scopes, coefficients.shape[0], {}, {"masks": masks})
    operands.check_state(OP, weights, scopes, coefficients, brackets, statistics, candidates)


@torch.library.register_fake(f"sparse_ops::{OP}")
def _fake(*arguments: Any) -> None:
    _check(*arguments)


def _sweep_observe_(weights: list[Tensor], masks: list[Tensor], *rest: Any) -> None:
    shared = masks, *rest
    statistics, candidates = rest[-2:]
    if not weights:
        _check(weights, *shared)
        return
    backend = launch.backend(weights[0].device)
    changed = [*weights, statistics, candidates] if masks else [statistics, candidates]
    if backend == "native":
        _check(weights, *shared, tensors=False)
        if operands.swept(extension.native().sweep_observe_, _check, weights, *shared):
            torch.autograd.graph.increment_version(changed)
            return
    _check(weights, *shared)
    operands.check_apart(OP, "weights", weights)
    match backend:
        case "triton":
            from sparse_ops.kernels import partials, sweep_observe

            with launch.on(weights[0].device):
                plan = tables.plan(weights, masks=masks, scopes=rest[0])
                sums = plan.partials()
                for table in plan.tables:
                    sweep_observe.sweep_observe(table, *[*rest[1:], sums])
                partials.add_partials(sums, plan.chunk_scopes, statistics, None)
        case "native":
            operands.accepted(OP, extension.native().sweep_observe_(weights, *shared))
        case "reference":
            reference.sweep_observe_(operands.flat(weights), *shared)
    torch.autograd.graph.increment_version(changed)


torch.library.impl(f"sparse_ops::{OP}", ("cpu", "cuda"), _sweep_observe_)


def sweep_observe_(
    weights: list[Tensor],
    masks: list[Tensor],
    scopes: list[int],
    coefficients: Tensor,
    brackets: Tensor,
    statistics: Tensor,
    candidates: Tensor,
) -> None:
    """Write +0 where the mask is 0, and add sums, counts and candidates of the weights to their scopes' rows.

    weights: dense in memory, any floating dtype. masks: [] or one packed uint8 tensor per weight (empty where none), in
    storage order. scopes: the row of each weight in the tables, -1 without statistics. The tables are described in
    docs/architecture.md. Not differentiable.
    """
    run = _sweep_observe_ if launch.unseen(weights) else torch.ops.sparse_ops.sweep_observe_
    run(
        weights, masks, scopes, coefficients, brackets, statistics, candidates,
    )  # fmt: skip
