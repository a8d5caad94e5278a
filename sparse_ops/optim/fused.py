"""SweepInside: what optimisers share whose update, penalty, mask and statistics are one pass."""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparse_ops import checks
from sparse_ops.optim.sweep import Sweep

_layout = operator.attrgetter("layout")


NUMBERS = ("lr", "momentum", "dampening", "weight_decay", "eps", "betas")


def check_numbers(title: str, **numbers: Any) -> None:
    """TypeError or ValueError for an optimiser's argument that is no number, is not finite or is below 0."""
    if "betas" in numbers:
        betas = numbers.pop("betas")
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise TypeError(f"{title}: betas is {betas!r}, expected two numbers")
        numbers |= {"betas[0]": betas[0], "betas[1]": betas[1]}
    for name, value in numbers.items():
        if name == "dampening" and isinstance(value, int | float) and -math.inf < value < 0:
            continue  # torch takes it
        checks.at_least_0(title, name, value)


class Tables(NamedTuple):
    """The tensors of a sweep in the order in which the ops take them."""

    coefficients: Tensor
    brackets: Tensor
    statistics: Tensor
    candidates: Tensor


@functools.cache
def _no_scopes(device: torch.device) -> Tables:
    """Tables without a row, for parameters that no sweep watches."""
    coefficients, brackets, statistics = (torch.zeros(0, n, dtype=torch.float64, device=device) for n in (4, 2, 7))
    return Tables(coefficients, brackets, statistics, torch.zeros(0, 1, device=device))


class Bucket(NamedTuple):
    """Parameters of one group that one call updates, their state, and what else the call needs."""

    params: list[Tensor]
    grads: list[Tensor]
    states: list[dict[str, Any]]
    masks: list[Tensor]
    groups: list[Tensor]
    scopes: list[int]
    tables: Tables
    penalty: str
    grad_scale: Tensor | None
    found_inf: Tensor | None


class SweepInside(torch.optim.Optimizer):
    """Mixed in before an optimiser of torch.optim: keeps its signature, state and state_dict, replaces its `step`."""

    sweep: Sweep | None = None  # set by optim.hooks.attach
    state_dtype: torch.dtype | None = None  # of momentum and moments; None: the parameter's
    _step_supports_amp_scaling = True

    def _skips(self) -> bool:
        """True where GradScaler found an infinity; on CUDA the op decides, so that nothing waits for the device.

        A method that counts steps has to know, and waits.
        """
        found_inf = getattr(self, "found_inf", None)
        counts = self.sweep is not None and self.sweep.hooks is not None
        return found_inf is not None and (found_inf.device.type == "cpu" or counts) and found_inf.item() != 0

    def _decided_by_device(self, bucket: Bucket) -> Tensor | None:
        """found_inf where the device may skip the update of a bucket without the host's knowing."""
        return None if bucket.found_inf is None or bucket.found_inf.device.type == "cpu" else bucket.found_inf

    def _buckets(self, group: dict[str, Any], state_of: Callable[[Tensor], dict[str, Any]]) -> Iterator[Bucket]:
        """The parameters of a group that have a gradient, by device and by what `_kind(state)` tells apart."""
        params: list[Tensor] = list(group["params"])
        found = [p.grad for p in params]
        if any(map(operator.is_, found, itertools.repeat(None))):
            params = [p for p, grad in zip(params, found, strict=True) if grad is not None]
        grads = [grad for grad in found if grad is not None]
        if any(map(operator.is_not, map(_layout, grads), itertools.repeat(torch.strided))):
            p, grad = next(pair for pair in zip(params, grads, strict=True) if pair[1].layout is not torch.strided)
            raise ValueError(
                f"{type(self).__name__}: the gradient of a {tuple(p.shape)} parameter is {grad.layout}, "
                "expected a strided one (an Embedding with sparse=True needs an optimiser of its own)"
            )
        states = list(map(state_of, params))
        devices, kinds = list(map(Tensor.get_device, params)), list(map(self._kind, states))
        if len(set(devices)) == len(set(kinds)) == 1:
            yield self._bucket(params, grads, states)
            return
        keys = list(zip(devices, kinds, strict=True))
        for key in dict.fromkeys(keys):
            mine = [i for i, other in enumerate(keys) if other == key]
            yield self._bucket([params[i] for i in mine], [grads[i] for i in mine], [states[i] for i in mine])

    def _bucket(self, params: list[Tensor], grads: list[Tensor], states: list[dict[str, Any]]) -> Bucket:
        device = params[0].device
        scaling = self._on(device, "grad_scale"), self._on(device, "found_inf")
        sweep, (tables, penalty) = self.sweep, self._tables(device)
        if sweep is None or sweep.coefficients.device != device:
            return Bucket(params, grads, states, [], [], [-1] * len(params), tables, penalty, *scaling)
        scopes, masks, groups = sweep.operands(params)
        return Bucket(params, grads, states, masks, groups, scopes, tables, penalty, *scaling)

    def _tables(self, device: torch.device) -> tuple[Tables, str]:
        """The sweep's tensors and the penalty that the coming update has to add."""
        sweep = self.sweep
        if sweep is None or sweep.coefficients.device != device:
            return _no_scopes(device), "none"
        return Tables(sweep.coefficients, sweep.brackets, sweep.statistics, sweep.candidates), sweep.penalty_now

    def _kind(self, state: dict[str, Any]) -> Any:
        """What parameters of one call have in common, beside their device."""
        return None

    def _on(self, device: torch.device, name: str) -> Tensor | None:
        """grad_scale or found_inf, which GradScaler sets on the optimiser for the length of a step."""
        t = getattr(self, name, None)
        return None if t is None else t.to(device, non_blocking=device.type == "cuda")

    def _rate(self, group: dict[str, Any], device: torch.device) -> float | Tensor:
        """The group's lr: a tensor on an accelerator stays there, so that a step neither waits for it nor, in a graph,
        keeps the value of its capture."""
        lr = group["lr"]
        if isinstance(lr, Tensor) and lr.device.type == device.type != "cpu":
            return lr.to(device, non_blocking=True)
        return float(lr)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch.optim's, and its numbers and dtypes are checked: a nan would be seen in the weights alone.

        Frozen parameters of other dtypes (quantised weights) are let in: they never have a gradient.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_numbers(type(self).__name__, **{name: group[name] for name in NUMBERS if name in group})
            for p in group["params"]:
                if p.requires_grad and p.dtype not in checks.FLOATS:
                    raise TypeError(
                        f"{type(self).__name__}: a parameter of shape {tuple(p.shape)} is {p.dtype}, "
                        "expected float16, bfloat16, float32 or float64"
                    )
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def _keep_state_in(self, dtype: torch.dtype | None) -> None:
        if not isinstance(dtype, torch.dtype | None):
            raise TypeError(f"{type(self).__name__}: state_dtype is {dtype!r}, expected a torch.dtype or None")
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"{type(self).__name__}: state_dtype is {dtype}, expected a floating point type or None")
        self.state_dtype = dtype

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "state_dtype": self.state_dtype}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch.optim loads it, but state keeps the precision that it was saved in, or takes `state_dtype`.

        torch casts a float32 momentum of a bfloat16 parameter down.
        """
        super().load_state_dict(state_dict)
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for i, p in zip(ids, params, strict=True):
            for key, saved in state_dict["state"].get(i, {}).items():
                if key == "step" or not isinstance(saved, Tensor) or not saved.is_floating_point():
                    continue
                dtype = self.state_dtype or saved.dtype
                if self.state[p][key].dtype != dtype:
                    self.state[p][key] = saved.to(p.device, dtype, copy=True)

    @torch._disable_dynamo  # one call already: a compiled graph ends here; torch.compiler.disable would import Triton
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; `closure`, where given, evaluates the model again and returns the loss."""
        loss = None
        if closure is not None:
            if self.sweep is not None:
                self.sweep.forget_added()
            with torch.enable_grad():
                loss = closure()
        if self._skips():
            return loss
        if self.sweep is not None and not self.sweep.begin_step():
            return loss
        self._before_update()
        updated = [p for group in self.param_groups for p in self._update(group)]
        if self.sweep is not None:
            self.sweep.observe(without=updated)
            self.sweep.finish()
        return loss

    def _before_update(self) -> None:
        """Once in a step, before its groups."""

    def _update(self, group: dict[str, Any]) -> list[Tensor]:
        """Update the parameters of one group that have a gradient, and name them."""
        raise NotImplementedError


def in_storage_of(params: list[Tensor], states: list[dict[str, Any]], key: str) -> list[Tensor]:
    """One state tensor per parameter with its strides, so that both are walked in storage order without a copy."""
    tensors = [state[key] for state in states]
    if all(map(Tensor.is_contiguous, params)) and all(map(Tensor.is_contiguous, tensors)):
        return tensors
    for i, (p, t) in enumerate(zip(params, tensors, strict=True)):
        if not (p.is_contiguous() and t.is_contiguous()) and t.stride() != p.stride():
            tensors[i] = torch.empty_strided(p.shape, p.stride(), dtype=t.dtype, device=t.device).copy_(t)
            states[i][key] = tensors[i]
    return tensors
