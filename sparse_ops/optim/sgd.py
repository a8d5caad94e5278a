"""SGD with penalty, update, mask and exact threshold statistics in one pass over the weights."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sparse_ops.ops.regularized_sgd import regularized_sgd_
from sparse_ops.optim.fused import SweepInside, in_storage_of


class SGD(SweepInside, torch.optim.SGD):
    """torch.optim.SGD's rule, signature, parameter groups and state_dict, in one fused pass, with a sweep or without.

    A sparsifier of `sparse_ops.methods` attaches its sweep; without one this is a plain fused SGD. `foreach` and
    `fused` are accepted and kept for exchange with torch.optim.SGD, but choose nothing; `lr` may be a 0-dim tensor (on
    CUDA it is read each step, which waits for the device). Gradients are only read. Under GradScaler the step unscales
    and skips by itself. ValueError for differentiable=True and for sparse gradients.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        if differentiable:
            raise ValueError("SGD: differentiable is True; the fused step writes in place and has no gradient")
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            fused=fused,
        )

    def _update(self, group: dict[str, Any]) -> list[Tensor]:
        momentum, dampening = float(group["momentum"]), float(group["dampening"])
        updated: list[Tensor] = []
        for bucket in self._buckets(group, self._has_no_buffer if momentum else lambda p: False):
            states = [self.state[p] for p in bucket.params] if momentum else []
            first = bool(states) and self._has_no_buffer(bucket.params[0])
            if first and dampening != 0 and bucket.found_inf is not None and bucket.found_inf.item():
                continue  # zeros left by a step that the device skips would count as a momentum in the next one
            if first:
                for state, p in zip(states, bucket.params, strict=True):
                    state["momentum_buffer"] = torch.zeros_like(p)
            regularized_sgd_(
                bucket.params,
                bucket.grads,
                in_storage_of(bucket.params, states, "momentum_buffer") if momentum else [],
                bucket.masks,
                bucket.groups,
                bucket.scopes,
                *bucket.tables,
                penalty=bucket.penalty,
                lr=float(group["lr"]),
                momentum=momentum,
                dampening=dampening,
                weight_decay=float(group["weight_decay"]),
                nesterov=bool(group["nesterov"]),
                maximize=bool(group["maximize"]),
                first_step=first,
                grad_scale=bucket.grad_scale,
                found_inf=bucket.found_inf,
            )
            updated += bucket.params
        return updated

    def _has_no_buffer(self, p: Tensor) -> bool:
        return self.state[p].get("momentum_buffer") is None
