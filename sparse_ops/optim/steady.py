"""SteadySteps: what SGD and AdamW share whose steps, on the CPU, hand C++ the gradients alone while all else stays."""

import operator
from itertools import repeat
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sparse_ops import launch
from sparse_ops.ops.bound_sweep import BoundSweep
from sparse_ops.optim.fused import Bucket, SweepInside, in_storage_of
from sparse_ops.optim.sweep import ForgetAdded

STEP = "step"  # the state's count of steps, which is no tensor of the parameter's shape
_CPU = torch.device("cpu")


class Steady(NamedTuple):
    """A parameter group as its last step found it, bound in C++: while all is the same, the gradients will do."""

    states: list[dict[str, Any]]
    kept: dict[str, list[Tensor]]  # what C++ keeps of the states, by their keys
    operands: Any  # what the sweep gave for these parameters, None without one
    bound: BoundSweep

    def holds(self, params: list[Tensor], states: dict[Tensor, Any], keys: tuple[str, ...], operands: Any) -> bool:
        """True where parameters, their state, masks and scopes are the very objects that are bound."""
        return (
            operands is self.operands
            and keys == tuple(self.kept)
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
            and all(
                all(map(operator.is_, map(dict.get, self.states, repeat(key)), kept)) for key, kept in self.kept.items()
            )
        )


class SteadySteps(SweepInside):
    """Mixed in in the place of SweepInside.

    On the CPU a group that is updated whole, by one call, is bound: C++ keeps its parameters and their state, so that a
    step hands over the gradients alone. Python's garbage collector does not see them there: parameters with attributes
    or hooks, which may refer to the optimiser, are not bound. That is looked at once: an attribute or a hook that is
    put on a bound parameter later and refers to the optimiser keeps both alive, until `release()`.
    """

    _bound_sweep: ClassVar[type[BoundSweep]]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.release()

    def release(self) -> None:
        """Let go of the parameters and the state that C++ keeps; the next step binds them again.

        For `torch.utils.swap_tensors` and conversions under `torch.__future__.set_swap_module_params_on_conversion`,
        which refuse tensors with a second owner, and to free at once what was removed from the groups or the state:
        else the next step does. Copies, pickles and loaded states start like this.
        """
        self._steady: dict[int, Steady] = {}  # by the ids of the groups
        self._seen_groups: list[int] = []  # their ids at the last step
        self._tries: dict[int, int] = {}  # by these ids: how often it might have been bound since its last steady step

    def _kept_state(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Which of a parameter's state a step of this group writes, STEP behind the rest; () where it is not bound."""
        raise NotImplementedError

    def _numbers(self, group: dict[str, Any]) -> dict[str, Any]:
        """A group's settings as the op takes them, but for the learning rate."""
        raise NotImplementedError

    def _any_update(self, group: dict[str, Any]) -> list[Tensor]:
        """As `_update`, with all lists handed over. It calls `_bind` where the next step may be steady."""
        raise NotImplementedError

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
        if steady is None or not self._may_bind(params):
            return []
        operands = None if self.sweep is None else self.sweep.operands(params)
        if not steady.holds(params, self.state, self._kept_state(group), operands):
            return []
        found = [p.grad for p in params]
        if any(map(operator.is_, found, repeat(None))):
            return []
        tables, penalty = self._tables(_CPU)
        if not steady.bound.step(
            found,  # type: ignore[arg-type]
            tables,
            penalty=penalty,
            lr=float(group["lr"]),
            **self._numbers(group),
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
        lists, steps = {}, {}
        for key in self._kept_state(group):
            if key == STEP:
                steps[key] = [state[key] for state in states]
            else:
                lists[key] = in_storage_of(params, states, key)
        operands = None if self.sweep is None else self.sweep.operands(params)
        bound = self._bound_sweep(
            params, list(lists.values()), steps.get(STEP, []), bucket.masks, bucket.groups, bucket.scopes
        )
        self._steady[id(group)] = Steady(states, lists | steps, operands, bound)


def _may_refer(p: Tensor) -> bool:
    """True where Python hangs on a parameter what may refer to its optimiser: in C++ nobody would find the cycle."""
    after: dict[int, Any] | None = p._post_accumulate_grad_hooks
    return bool(
        p.__dict__ or p._backward_hooks or (after and not all(isinstance(hook, ForgetAdded) for hook in after.values()))
    )
