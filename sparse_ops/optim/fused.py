"""SweepInside: what optimisers share whose update, penalty, mask and statistics are one pass."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparse_ops.optim.sweep import Sweep


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
    """Parameters of one group that one call updates, and what the call needs beside the optimiser's state."""

    params: list[Tensor]
    grads: list[Tensor]
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
    _step_supports_amp_scaling = True

    def _skips(self) -> bool:
        """True where GradScaler found an infinity; on CUDA the op decides, so that nothing waits for the device."""
        found_inf = getattr(self, "found_inf", None)
        return found_inf is not None and found_inf.device.type == "cpu" and found_inf.item() != 0

    def _decided_by_device(self, bucket: Bucket) -> Tensor | None:
        """found_inf where the device may skip the update of a bucket without the host's knowing."""
        return None if bucket.found_inf is None or bucket.found_inf.device.type == "cpu" else bucket.found_inf

    def _buckets(self, group: dict[str, Any], key: Any) -> Iterator[Bucket]:
        """The parameters of a group that have a gradient, by device, dtypes and `key(parameter)`."""
        buckets: dict[Any, list[Tensor]] = {}
        for p in group["params"]:
            if p.grad is not None:
                if p.grad.layout != torch.strided:
                    raise ValueError(
                        f"{type(self).__name__}: the gradient of a {tuple(p.shape)} parameter is {p.grad.layout}, "
                        "expected a strided one (an Embedding with sparse=True needs an optimiser of its own)"
                    )
                buckets.setdefault((p.device, p.dtype, p.grad.dtype, key(p)), []).append(p)
        for (device, *_), params in buckets.items():
            grads = [p.grad for p in params if p.grad is not None]
            scaling = self._on(device, "grad_scale"), self._on(device, "found_inf")
            sweep = self.sweep
            if sweep is None or sweep.coefficients.device != device:
                yield Bucket(params, grads, [], [], [-1] * len(params), _no_scopes(device), "none", *scaling)
            else:
                scopes, masks, groups = sweep.operands(params)
                tables = Tables(sweep.coefficients, sweep.brackets, sweep.statistics, sweep.candidates)
                yield Bucket(params, grads, masks, groups, scopes, tables, sweep.penalty_now, *scaling)

    def _on(self, device: torch.device, name: str) -> Tensor | None:
        """grad_scale or found_inf, which GradScaler sets on the optimiser for the length of a step."""
        t = getattr(self, name, None)
        return None if t is None else t.to(device, non_blocking=device.type == "cuda")

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
        if self.sweep is not None:
            self.sweep.begin()
        updated = [p for group in self.param_groups for p in self._update(group)]
        if self.sweep is not None:
            self.sweep.observe(without=updated)
            self.sweep.finish()
        return loss

    def _update(self, group: dict[str, Any]) -> list[Tensor]:
        """Update the parameters of one group that have a gradient, and name them."""
        raise NotImplementedError


def in_storage_of(params: list[Tensor], states: list[dict[str, Any]], key: str) -> list[Tensor]:
    """One state tensor per parameter with its strides, so that both are walked in storage order without a copy."""
    for p, state in zip(params, states, strict=True):
        t = state[key]
        if t.stride() != p.stride():
            state[key] = torch.empty_strided(p.shape, p.stride(), dtype=t.dtype, device=t.device).copy_(t)
    return [state[key] for state in states]
