"""SGD with penalty, update, mask and exact threshold statistics in one pass over the weights."""

import operator
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sparse_ops import launch
from sparse_ops.ops.bound_sgd import BoundSgd
from sparse_ops.ops.regularized_sgd import regularized_sgd_
from sparse_ops.optim.fused import Bucket, SweepInside, check_numbers, in_storage_of
from sparse_ops.optim.sweep import ForgetAdded

UNBEGUN = "unbegun"  # on CUDA: 1 while the device has skipped every step of a momentum_buffer, else 0


_CPU = torch.device("cpu")


class Steady(NamedTuple):
    """A parameter group as its last step found it, bound in C++: while all is the same, the gradients will do."""

    states: list[dict[str, Any]]
    operands: Any  # what the sweep gave for these parameters, None without one
    bound: BoundSgd

    def holds(self, params: list[Tensor], states: dict[Tensor, Any], operands: Any) -> bool:
        """True where parameters, their state, masks and scopes are the very objects that are bound."""
        return (
            operands is self.operands
            and len(params) == len(self.states)
            and all(map(operator.is_, params, self.bound.weights))
            and (
                # the optimiser's only group: hashing a tensor takes as long as the rest of these checks
                (
                    len(states) == len(params)
                    and all(map(operator.is_, params, states))
                    and all(map(operator.is_, self.states, states.values()))
                )
                or all(map(operator.is_, map(states.get, params), self.states))
            )
            and all(map(operator.is_, map(dict.get, self.states, repeat("momentum_buffer")), self.bound.momenta))
        )


class SGD(SweepInside, torch.optim.SGD):
    """torch.optim.SGD's rule, signature, parameter groups and state_dict, in one fused pass, with a sweep or without.

    A sparsifier of `sparse_ops.methods` attaches its sweep; without one this is a plain fused SGD. `foreach` and
    `fused` are accepted and kept for exchange with torch.optim.SGD, but choose nothing. `lr` may be a 0-dim tensor: on
    CUDA the device reads it, so that nothing waits and a captured graph follows its changes. Gradients are only read.
    Under GradScaler the step unscales and skips by itself. state_dtype=torch.float32 keeps the momentum of
    half-precision parameters in float32 (default: the parameter's dtype); a loaded state keeps the precision it was
    saved in. ValueError for differentiable=True and for sparse gradients.

    On the CPU a group with momentum that is updated whole is bound: C++ keeps its parameters and momenta, so that a
    step hands over the gradients alone. Python's garbage collector does not see them there: parameters with attributes
    or hooks, which may refer to the optimiser, are not bound. That is looked at once: an attribute or a hook that is
    put on a bound parameter later and refers to the optimiser keeps both alive, until `release()`.
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

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.release()

    def release(self) -> None:
        """Let go of the parameters and momenta that C++ keeps; the next step binds them again.

        For `torch.utils.swap_tensors` and conversions under `torch.__future__.set_swap_module_params_on_conversion`,
        which refuse tensors with a second owner, and to free at once what was removed from the groups or the state:
        else the next step does. Copies, pickles and loaded states start like this.
        """
        self._steady: dict[int, Steady] = {}  # by the ids of the groups
        self._seen_groups: list[int] = []  # their ids at the last step
        self._tries: dict[int, int] = {}  # by these ids: how often it might have been bound since its last steady step

    def _before_update(self) -> None:
        seen = list(map(id, self.param_groups))
        if seen != self._seen_groups:  # what a removed group has bound would be kept for ever
            self._steady = {group: steady for group, steady in self._steady.items() if group in seen}
            self._tries = {group: tries for group, tries in self._tries.items() if group in seen}
            self._seen_groups = seen

    def _update(self, group: dict[str, Any]) -> list[Tensor]:
        return self._steady_update(group) or self._any_update(group)

    def _steady_update(self, group: dict[str, Any]) -> list[Tensor]:
        """The parameters of a group where all is as in its last step; [] where it is not, and nothing is done."""
        steady = self._steady.pop(id(group), None)
        params: list[Tensor] = group["params"]
        if steady is None or not group["momentum"] or not self._may_bind(params):
            return []
        if not steady.holds(params, self.state, None if self.sweep is None else self.sweep.operands(params)):
            return []
        found = [p.grad for p in params]
        if any(map(operator.is_, found, repeat(None))):
            return []
        tables, penalty = self._tables(_CPU)
        if not steady.bound.step(
            found,  # type: ignore[arg-type]
            *tables,
            penalty=penalty,
            lr=float(group["lr"]),
            **_numbers(group),
            grad_scale=self._on(_CPU, "grad_scale"),
            found_inf=self._on(_CPU, "found_inf"),
        ):
            return []
        self._steady[id(group)] = steady
        self._tries[id(group)] = 0
        return params

    def _may_bind(self, params: list[Tensor]) -> bool:
        """True where the C++ kernel runs, nobody watches its calls, and no parameter is about to be swapped."""
        return (
            (self.sweep is None or self.sweep.coefficients.device.type == "cpu")
            and launch.backend(_CPU) == "native"
            and not torch.__future__.get_swap_module_params_on_conversion()
            and launch.unseen(params)
        )

    def _bind(self, group: dict[str, Any], bucket: Bucket) -> None:
        """Remember a group whose parameters one call on the CPU has updated, for the next step."""
        params, states = bucket.params, bucket.states
        everything = len(params) == len(group["params"]) and params[0].device.type == "cpu"
        if not everything or not self._may_bind(params) or any(map(_may_refer, params)):
            return
        tries = self._tries[id(group)] = self._tries.get(id(group), 0) + 1
        if tries > 3 and tries % 64:  # gradients that lie otherwise each time, masks that change at each step
            return
        buffers = in_storage_of(params, states, "momentum_buffer")
        operands = None if self.sweep is None else self.sweep.operands(params)
        bound = BoundSgd(params, buffers, bucket.masks, bucket.groups, bucket.scopes)
        self._steady[id(group)] = Steady(states, operands, bound)

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
            **_numbers(group),
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


def _may_refer(p: Tensor) -> bool:
    """True where Python hangs on a parameter what may refer to its optimiser: in C++ nobody would find the cycle."""
    after: dict[int, Any] | None = p._post_accumulate_grad_hooks
    return bool(
        p.__dict__ or p._backward_hooks or (after and not all(isinstance(hook, ForgetAdded) for hook in after.values()))
    )


def _numbers(group: dict[str, Any]) -> dict[str, Any]:
    """A group's settings as the ops take them, but for the learning rate."""
    numbers: dict[str, Any] = {name: float(group[name]) for name in ("momentum", "dampening", "weight_decay")}
    return numbers | {name: bool(group[name]) for name in ("nesterov", "maximize")}
