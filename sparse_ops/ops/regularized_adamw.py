"""The op sparse_ops::regularized_adamw_: penalty, AdamW update, mask and threshold statistics in one sweep."""

from typing import Any

import torch
from torch import Tensor

from sparse_ops import checks, extension, launch, tables
from sparse_ops.ops import sweep_operands as operands
from sparse_ops.reference import regularized_adamw as reference

OP = "regularized_adamw_"
torch.library.define(
    f"sparse_ops::{OP}",
    "(Tensor(a!)[] weights, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    f"Tensor(d!)[] max_exp_avg_sqs, Tensor[] steps, {operands.STATE}, str penalty, float lr, float beta1, "
    "float beta2, float eps, float weight_decay, bool maximize, Tensor? lr_tensor, Tensor? grad_scale, "
    "Tensor? found_inf) -> ()",
)


def check(
    weights: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor], steps: list[Tensor], masks: list[Tensor], groups: list[Tensor], scopes: list[int],
    coefficients: Tensor, brackets: Tensor, statistics: Tensor, candidates: Tensor, penalty: str, lr: float,
    beta1: float, beta2: float, eps: float, weight_decay: float, maximize: bool, lr_tensor: Tensor | None,
    grad_scale: Tensor | None, found_inf: Tensor | None, *, tensors: bool = True,
) -> None:  # fmt: skip
    """Check the operands: the first half of the op and, since nothing is allocated, all of its fake."""
    if tensors:
        likes = {"grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
        if max_exp_avg_sqs:
            likes["max_exp_avg_sqs"] = max_exp_avg_sqs
        packed = {"masks": masks, "groups": groups}
        operands.check_tensors(OP, weights, scopes, coefficients.shape[0], likes, packed)
        if len(steps) != len(weights):
            raise ValueError(f"{OP}: {len(weights)} weights but {len(steps)} steps")
        for i, step in enumerate(steps):
            if step.dtype is not torch.float32 or step.numel() != 1:
                raise ValueError(f"{OP}: steps[{i}] is {step.dtype} {tuple(step.shape)}, expected one float32")
    operands.check_state(OP, weights, scopes, coefficients, brackets, statistics, candidates)
    operands.check_penalty(OP, penalty)
    operands.check_rate(OP, lr_tensor, weights)
    operands.check_scalar(OP, "grad_scale", grad_scale)
    operands.check_scalar(OP, "found_inf", found_inf)
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= beta < 1:
            raise ValueError(f"{OP}: {name} is {beta}, expected 0 <= {name} < 1")


@torch.library.register_fake(f"sparse_ops::{OP}")
def _fake(*arguments: Any) -> None:
    check(*arguments)


def _regularized_adamw_(
    weights: list[Tensor], grads: list[Tensor], m: list[Tensor], v: list[Tensor], largest: list[Tensor], *rest: Any
) -> None:
    old = [grads, m, v, largest]
    if not weights:
        check(weights, grads, m, v, largest, *rest)
        return
    backend = launch.backend(weights[0].device)
    changed = [*weights, *m, *v, *largest, *rest[6:8]]
    if backend == "native":
        check(weights, grads, m, v, largest, *rest, tensors=False)
        if operands.swept(extension.native().regularized_adamw_, check, weights, *old, *rest):
            torch.autograd.graph.increment_version(changed)
            return
    check(weights, grads, m, v, largest, *rest)
    operands.check_apart(OP, "weights", weights)
    new = [[checks.like_storage(t, w) for t, w in zip(ts, weights, strict=True)] if ts else [] for ts in old]
    steps = [step.to(weights[0].device) for step in rest[0]]
    match backend:
        case "native":
            operands.accepted(OP, extension.native().regularized_adamw_(weights, *new, steps, *rest[1:]))
        case "triton":
            from sparse_ops.kernels import partials, regularized_adamw

            masks, groups, scopes, coefficients, brackets, statistics, candidates, *rule, found_inf = rest[1:]
            with launch.on(weights[0].device):
                states = [state for state in new[1:] if state]
                plan = tables.plan(weights, new[0], masks, groups, states, steps, scopes=scopes)
                sums = plan.partials()
                arguments = [coefficients, brackets, statistics, candidates, sums, *rule, found_inf]
                for table in plan.tables:
                    regularized_adamw.regularized_adamw(table, *arguments)
                partials.add_partials(sums, plan.chunk_scopes, statistics, found_inf)
        case "reference":
            g, a, b, c = map(operands.flat, new)
            reference.regularized_adamw_(operands.flat(weights), g, a, b, c, steps, *rest[1:])
    for before, after in zip(m + v + largest, new[1] + new[2] + new[3], strict=True):
        if after is not before:
            before.copy_(after)
    torch.autograd.graph.increment_version(changed)


torch.library.impl(f"sparse_ops::{OP}", ("cpu", "cuda"), _regularized_adamw_)


def regularized_adamw_(
    weights: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
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
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One AdamW step over all weights, in place, with the penalty's gradient, masks and the threshold's statistics.

    As regularized_sgd_, with the moments exp_avgs and exp_avg_sqs, with max_exp_avg_sqs for amsgrad ([] without), and
    steps: one float32 per weight that already counts this step, only read. The penalty joins the gradient, the decay
    is decoupled (arXiv 1711.05101). Where the mask is 0 the weight and all its moments become +0.
    """
    rate, lr_tensor = operands.split_rate(lr)
    run = _regularized_adamw_ if launch.unseen(weights) else torch.ops.sparse_ops.regularized_adamw_
    run(
        weights, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, masks, groups, scopes, coefficients,
        brackets, statistics, candidates, penalty, rate, beta1, beta2, eps, weight_decay, maximize, lr_tensor,
        grad_scale, found_inf,
    )  # fmt: skip
