"""SGD with penalty, update, mask and exact threshold statistics in one pass over the weights."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sparse_ops.ops.bound_sweep import BoundSgd
from sparse_ops.ops.regularized_sgd import regularized_sgd_
from sparse_ops.optim.fused import Bucket, check_numbers, in_storage_of
from sparse_ops.optim.steady import SteadySteps

UNBEGUN = "unbegun"  # on CUDA: 1 while the device has skipped every step of a momentum_buffer, else 0


class SGD(SteadySteps, torch.optim.SGD):
    """torch.optim.SGD's rule, signature, parameter groups and state_dict, in one fused pass, with a sweep or without.

    A sparsifier of `sparse_ops.methods` attaches its sweep; without one this is a plain fused SGD. `foreach` and
    `fused` are accepted and kept for exchange with torch.optim.SGD, but choose nothing. `lr` may be a 0-dim tensor: on
    CUDA the device reads it, so that nothing waits and a captured graph follows its changes. Gradients are only read.
    Under GradScaler the step unscales and skips by itself. state_dtype=torch.float32 keeps the momentum of
    half-precision parameters in float32 (default: the parameter's dtype); a loaded state keeps the precision it was
    saved in. ValueError for differentiable=True and for sparse gradients.

    On the CPU a group with momentum that is updated whole is bound, see `SteadySteps`.
    """

    _bound_sweep = BoundSgd

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
        state_dtype: torch.dtype | None = None,
    ) -> None:
        if differentiable:
            raise ValueError("SGD: differentiable is True; the fused step writes in place and has no gradient")
        check_numbers("SGD", lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay)
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
        self._keep_state_in(state_dtype)
        self.release()

    def _kept_state(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def _numbers(self, group: dict[str, Any]) -> dict[str, Any]:
        numbers: dict[str, Any] = {name: float(group[name]) for name in ("momentum", "dampening", "weight_decay")}
        return numbers | {name: bool(group[name]) for name in ("nesterov", "maximize")}

    def _any_update(self, group: dict[str, Any]) -> list[Tensor]:
        momentum, dampening = float(group["momentum"]), float(group["dampening"])
        updated: list[Tensor] = []
        nothing: dict[str, Any] = {}
        for bucket in self._buckets(group, self.state.__getitem__ if momentum else lambda p: nothing):
            states = bucket.states if momentum else []
            first = bool(states) and not self._kind(states[0])
            if first:
                for state, p in zip(states, bucket.params, strict=True):
                    state["momentum_buffer"] = torch.zeros_like(p, dtype=self.state_dtype)
            unbegun = states[0].get(UNBEGUN) if states else None
            if unbegun is not None:  # the device knows whether this is the first step: offer it both, it takes one
                skip = torch.zeros_like(unbegun) if bucket.found_inf is None else bucket.found_inf.reshape(())
                self._call(group, bucket._replace(found_inf=torch.maximum(skip, 1 - unbegun)), states, first=True)
                self._call(group, bucket._replace(found_inf=torch.maximum(skip, unbegun)), states, first=False)
                unbegun *= skip
            else:
                self._call(group, bucket, states, first)
                if states and not first:
                    self._bind(group, bucket)
                found_inf = self._decided_by_device(bucket)
                if first and dampening != 0 and found_inf is not None:
                    # zeros left by a step that the device skips are no momentum: the next step is the first
                    flag = found_inf.reshape(()).clone()
                    for state in states:
                        state[UNBEGUN] = flag
            updated += bucket.params
        return updated

    def _call(self, group: dict[str, Any], bucket: Bucket, states: list[dict[str, Any]], first: bool) -> None:
        regularized_sgd_(
            bucket.params,
            bucket.grads,
            in_storage_of(bucket.params, states, "momentum_buffer") if states else [],
            bucket.masks,
            bucket.groups,
            bucket.scopes,
            *bucket.tables,
            penalty=bucket.penalty,
            lr=self._rate(group, bucket.params[0].device),
            **self._numbers(group),
            first_step=first,
            grad_scale=bucket.grad_scale,
            found_inf=bucket.found_inf,
        )

    def _kind(self, state: dict[str, Any]) -> bool | int:
        """False without a momentum; else True, or what tells apart the flags on which the device decides."""
        if state.get("momentum_buffer") is None:
            return False
        return id(state[UNBEGUN]) if UNBEGUN in state else True

    def state_dict(self) -> dict[str, Any]:
        """That of torch.optim.SGD; it waits for the device where that alone knows whether a momentum has begun."""
        packed = super().state_dict()
        states = dict(packed["state"])
        for index, state in states.items():
            if UNBEGUN in state:
                buffer = None if state[UNBEGUN].item() else state["momentum_buffer"]
                states[index] = {k: v for k, v in state.items() if k != UNBEGUN} | {"momentum_buffer": buffer}
        return packed | {"state": states}
