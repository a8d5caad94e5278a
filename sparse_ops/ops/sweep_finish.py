"""The op sparse_ops::sweep_finish_: the exact threshold of a step, and what the next step needs."""

from typing import Any

import torch
from torch import Tensor

from sparse_ops import extension, launch, tables
from sparse_ops.ops import sweep_operands as operands
from sparse_ops.reference import sweep_finish as reference

OP = "sweep_finish_"
torch.library.define(
    f"sparse_ops::{OP}",
    "(Tensor[] weights, int[] scopes, int[] ranks, float tolerance, bool exact, Tensor(a!) coefficients, "
    "Tensor(b!) brackets, Tensor(c!) statistics, Tensor candidates, Tensor(d!) report) -> ()",
)


def _check(
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
    *,
    tensors: bool = True,
) -> None:
    """Check the operands: the first half of the op and, since nothing is allocated, all of its fake."""
    if tensors:
        operands.check_tensors(OP, weights, scopes, coefficients.shape[0], {}, {})
    operands.check_state(OP, weights, scopes, coefficients, brackets, statistics, candidates)
    rows = coefficients.shape[0]
    operands.check_table(OP, "report", report, rows, 8, weights)
    if len(ranks) != rows:
        raise ValueError(f"{OP}: {rows} scopes but {len(ranks)} ranks")
    if tensors:
        sizes = [0] * rows
        for w, scope in zip(weights, scopes, strict=True):
            if scope >= 0:
                sizes[scope] += w.numel()
        for r, k in enumerate(ranks):
            if not 0 <= k <= sizes[r]:
                raise ValueError(f"{OP}: ranks[{r}] is {k}, expected 0 (none) to {sizes[r]}, the weights of scope {r}")
    if not 0 <= tolerance < 1:
        raise ValueError(f"{OP}: tolerance is {tolerance}, expected 0 <= tolerance < 1")


@torch.library.register_fake(f"sparse_ops::{OP}")
def _fake(*arguments: Any) -> None:
    _check(*arguments)


def _sweep_finish_(weights: list[Tensor], *rest: Any) -> None:
    coefficients, brackets, statistics, candidates, report = rest[-5:]
    backend = launch.backend(coefficients.device)
    changed = [coefficients, brackets, statistics, report]
    if backend == "native":
        _check(weights, *rest, tensors=False)
        if extension.native().sweep_finish_(weights, *rest):
            torch.autograd.graph.increment_version(changed)
            return
    _check(weights, *rest)
    match backend:
        case "triton":
            from sparse_ops.kernels import sweep_finish as kernel

            scopes, ranks, *rule = rest
            with launch.on(coefficients.device):
                plan = tables.plan(weights, scopes=scopes, device=coefficients.device)
                sizes = [0] * len(ranks)
                for w, scope in zip(weights, scopes, strict=True):
                    if scope >= 0:
                        sizes[scope] += w.numel()
                constants = [tables.integers(column, coefficients.device) for column in (ranks, sizes)]
                work = coefficients.new_empty(len(ranks), 8)
                histograms = plan.histograms(len(ranks), candidates.dtype)
                kernel.sweep_finish(plan, *[*constants, *rule, work, histograms, plan.partials()])
        case "native":
            operands.accepted(OP, extension.native().sweep_finish_(weights, *rest))
        case "reference":
            reference.sweep_finish_(operands.flat(weights), *rest)
    torch.autograd.graph.increment_version(changed)


torch.library.impl(f"sparse_ops::{OP}", ("cpu", "cuda"), _sweep_finish_)


def sweep_finish_(
    weights: list[Tensor],
    scopes: list[int],
    ranks: list[int],
    coefficients: Tensor,
    brackets: Tensor,
    statistics: Tensor,
    candidates: Tensor,
    report: Tensor,
    *,
    tolerance: float = 0.01,
    exact: bool = False,
) -> None:
    """End a step: from what the sweeps collected, write each scope's exact threshold and the next coefficients.

    weights, scopes: all weights of the tracked scopes; they are read only where the counts do not prove the threshold.
    ranks: per scope k, 1-based from the smallest magnitude, 0 to track nothing. tolerance: the largest |ds/s| at which
    the normaliser is carried over to second order, with a relative error below 0.44 (ds/s)^2. exact: read the weights
    in any case; after they, a mask or a rank changed from outside. A scope that no sweep touched since the last call is
    left as it is. The tables are described in docs/architecture.md. Not differentiable.
    """
    run = _sweep_finish_ if launch.unseen(weights) else torch.ops.sparse_ops.sweep_finish_
    run(
        weights, scopes, ranks, tolerance, exact, coefficients, brackets, statistics, candidates, report,
    )  # fmt: skip
