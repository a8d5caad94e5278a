"""Checks of the sweep's ops and of the optimisers on a device, against float64 arithmetic in plain torch."""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.gpu_problems import bits, compute_eps, guarded, guards_hold, op_under_test, randn, unpacked, within
from sparse_ops.ops.add_penalty_grad import add_penalty_grad_
from sparse_ops.ops.regularized_adamw import regularized_adamw_
from sparse_ops.ops.regularized_sgd import regularized_sgd_
from sparse_ops.ops.sweep_observe import sweep_observe_

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
SCOPES = [0, 1, -1, 0, 1, 0, 2]
ROWS = [[0.05, 0.02, 0.3, 3.7], [0.07, 0.01, 0.9, 1.7], [0.03, 0.05, 2.0, 1.2]]  # strength, kept strength, s, N/A
BRACKETS = [[1.0, 1.5], [0.5, 0.75], [0.1, 0.3]]
UNTOUCHED = 3.0  # what the statistics hold before: an op adds to them


class Problem:
    """Guarded weights, gradients and states, packed bits, the tables of three scopes, and float64 copies of all."""

    def __init__(self, args, types: tuple[torch.dtype, ...], masked: bool, scoped: bool, states: int) -> None:
        small = args.device == "cpu"
        self.sizes = [0, 1, 7, 17, 264, 523, 520] if small else [0, 1, 7, 17, 1000, 16384 + 3, 3 * 16384]
        self.device, self.scopes = args.device, SCOPES if scoped else [-1] * len(SCOPES)
        w_type, g_type, s_type = (*types, *types[-1:] * 2)[:3]
        self.weights = [self.guarded(i, w_type) for i in range(len(self.sizes))]
        self.grads = [self.guarded(100 + i, g_type) for i in range(len(self.sizes))]
        self.states = [[self.guarded(200 + 50 * k + i, s_type) for i in range(len(self.sizes))] for k in range(states)]
        packed = [bits(n, 400 + i, self.device) for i, n in enumerate(self.sizes)]
        self.masks = [*packed[:-1], packed[-1][:0]] if masked else []  # the last tensor has none
        self.groups = [bits(n, 500 + i, self.device) for i, n in enumerate(self.sizes)]
        f64 = {"dtype": F64, "device": self.device}
        self.coefficients, self.brackets = torch.tensor(ROWS, **f64), torch.tensor(BRACKETS, **f64)
        self.statistics = torch.full((3, 7), UNTOUCHED, **f64)
        self.statistics[:, 5] = 0
        wide = F64 if w_type == F64 else F32
        self.candidates = torch.full((3, sum(self.sizes)), float("nan"), dtype=wide, device=self.device)
        self.tables = self.coefficients, self.brackets, self.statistics, self.candidates
        self.old = [[t.to(F64, copy=True) for t in ts] for ts in (self.weights, self.grads, *self.states)]

    def guarded(self, seed: int, dtype: torch.dtype) -> Tensor:
        return guarded(randn(self.sizes[seed % 50], seed, dtype, self.device))

    def keep(self, i: int) -> Tensor:
        if not self.masks or not self.masks[i].numel():
            return torch.ones(self.sizes[i], dtype=torch.bool, device=self.device)
        return unpacked(self.masks[i], self.sizes[i])

    def penalty(self, i: int, penalty: str) -> tuple[Tensor, float]:
        """(gradient of the penalty at the old weights, a bound of its terms) in float64."""
        w, scope = self.old[0][i], self.scopes[i]
        if scope < 0 or penalty == "none":
            return torch.zeros_like(w), 0.0
        strength, kept, s, ratio = ROWS[scope]
        match penalty:
            case "l1":
                return strength * w.sign(), strength
            case "l2":
                return 2 * strength * w, 12 * strength
            case "growing_l2":
                return torch.where(unpacked(self.groups[i], self.sizes[i]), strength, kept) * w, 6 * (strength + kept)
        pull = strength * s * ratio
        return pull * w.sign() / torch.cosh(s * w.abs()) ** 2, pull

    def statistics_hold(self) -> None:
        """The sums, counts and candidates of the weights as they are stored now."""
        for t in self.weights:
            guards_hold(t)
        for row in range(3):
            mine = [w.double().abs() for w, scope in zip(self.weights, self.scopes, strict=True) if scope == row]
            u = torch.cat(mine) if mine else self.coefficients.new_zeros(0)
            s, (low, high) = ROWS[row][2], BRACKETS[row]
            tanh, sech2 = torch.tanh(s * u), torch.cosh(s * u) ** -2
            sums = torch.stack([u.sum(), tanh.sum(), (u * sech2).sum(), (u * u * tanh * sech2).sum()])
            added = self.statistics[row] - UNTOUCHED
            torch.testing.assert_close(added[:4], sums, rtol=2e-6, atol=1e-5)
            chosen = u[(u >= low) & (u < high)].sort().values
            count = chosen.numel()
            counted = [added[4].item(), self.statistics[row, 5].item(), added[6].item()]
            assert counted == [(u >= high).sum().item(), count, u.numel()], f"scope {row}: counts are {counted}"
            assert torch.equal(self.candidates[row, :count].double().sort().values, chosen), f"scope {row}: candidates"
            assert self.candidates[row, count:].isnan().all(), f"scope {row}: written beyond the candidates"

    def unchanged(self) -> None:
        """Nothing at all was written: what a skipped step leaves."""
        for now, before in zip((self.weights, self.grads, *self.states), self.old, strict=True):
            assert all(torch.equal(a.double(), b) for a, b in zip(now, before, strict=True))
        assert (self.statistics[:, [0, 1, 2, 3, 4, 6]] == UNTOUCHED).all() and (self.statistics[:, 5] == 0).all()


def _scalars(options: dict[str, Any], device: str) -> dict[str, Any]:
    """lr_tensor, grad_scale and found_inf as the tensors that an op takes."""
    given = {n: torch.tensor(float(options[n]), device=device) for n in ("grad_scale", "found_inf") if n in options}
    if "lr_tensor" in options:
        given["lr"] = torch.tensor(options["lr_tensor"], device=device)
    return {k: v for k, v in options.items() if k != "lr_tensor"} | given


def sgd(args, penalty="hypersparse", types=(F32,), masked=False, scoped=True, skipped=False, **options) -> None:
    """One step, or what a device-side skip leaves."""
    rule = {"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.1, "nesterov": False} | options
    rule["lr"] = rule.get("lr_tensor", rule["lr"])
    p = Problem(args, types, masked, scoped, int(rule["momentum"] != 0))
    with op_under_test():
        momenta = p.states[0] if p.states else []
        given = _scalars(rule, args.device)
        regularized_sgd_(p.weights, p.grads, momenta, p.masks, p.groups, p.scopes, *p.tables, penalty=penalty, **given)
    if skipped:
        return p.unchanged()
    for i, w in enumerate(p.old[0]):
        added, pull = p.penalty(i, penalty)
        g = p.old[1][i] / rule.get("grad_scale", 1.0) * (-1 if rule.get("maximize") else 1)
        size = g.abs() + 0.1 * w.abs() + pull
        g = g + rule["weight_decay"] * w + added
        if momenta:
            first = rule.get("first_step", False)
            m = g if first else rule["momentum"] * p.old[2][i] + (1 - rule["dampening"]) * g
            size = size + p.old[2][i].abs()
            within(momenta[i], torch.where(p.keep(i), m, 0.0), size, f"momentum {i}")
            g = g + rule["momentum"] * m if rule["nesterov"] else m
        new = torch.where(p.keep(i), w - rule["lr"] * g, 0.0)
        within(p.weights[i], new, w.abs() + rule["lr"] * 2 * size, f"weight {i}")
        assert torch.equal(p.grads[i].double(), p.old[1][i]), "a gradient was written"
    p.statistics_hold()
    return None


def adamw(args, penalty="hypersparse", types=(F32,), masked=False, amsgrad=False, skipped=False, **options) -> None:
    rule = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1} | options
    rule["lr"] = rule.get("lr_tensor", rule["lr"])
    p = Problem(args, types, masked, True, 3 if amsgrad else 2)
    for moments in p.states[1:]:
        for t in moments:
            t.abs_()
    p.old[3:] = [[t.to(F64, copy=True) for t in ts] for ts in p.states[1:]]
    steps = [torch.tensor(float(3 + i), device=args.device) for i in range(len(p.sizes))]
    with op_under_test():
        states = p.states if amsgrad else [*p.states, []]
        lists = p.weights, p.grads, *states, steps, p.masks, p.groups, p.scopes
        regularized_adamw_(*lists, *p.tables, penalty=penalty, **_scalars(rule, args.device))
    if skipped:
        return p.unchanged()
    for i, (w, m, v) in enumerate(zip(p.old[0], p.old[2], p.old[3], strict=True)):
        added, pull = p.penalty(i, penalty)
        g = p.old[1][i] / rule.get("grad_scale", 1.0) * (-1 if rule.get("maximize") else 1)
        size = g.abs() + pull
        g = g + added
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        largest = torch.maximum(p.old[4][i], v) if amsgrad else v
        step = 3 + i
        root = (largest / (1 - 0.99**step)).sqrt()
        change = rule["lr"] / (1 - 0.9**step) * m / (root + rule["eps"])
        new = w - rule["lr"] * rule["weight_decay"] * w - change
        # an error of m counts once over the root, one of v halves through it
        unsure = rule["lr"] / (1 - 0.9**step) * (p.old[2][i].abs() + size) / root + change.abs()
        keep = p.keep(i)
        within(p.states[0][i], torch.where(keep, m, 0.0), p.old[2][i].abs() + size, f"exp_avg {i}")
        within(p.states[1][i], torch.where(keep, v, 0.0), v + size * size, f"exp_avg_sq {i}")
        if amsgrad:
            within(p.states[2][i], torch.where(keep, largest, 0.0), largest + size * size, f"max_exp_avg_sq {i}")
        within(p.weights[i], torch.where(keep, new, 0.0), w.abs() + 4 * unsure, f"weight {i}")
    p.statistics_hold()
    return None


def observe(args, types=(F32,), masked=True) -> None:
    p = Problem(args, types, masked, True, 0)
    with op_under_test():
        sweep_observe_(p.weights, p.masks, p.scopes, *p.tables)
    for i, w in enumerate(p.old[0]):
        assert torch.equal(p.weights[i].double(), torch.where(p.keep(i), w, 0.0)), f"weight {i}"
    p.statistics_hold()


def penalty_gradient(args, penalty="hypersparse", types=(F32,)) -> None:
    p = Problem(args, types, False, True, 0)
    with op_under_test():
        scale = torch.tensor(4.0, device=args.device)
        add_penalty_grad_(p.grads, p.weights, p.groups, p.scopes, p.coefficients, penalty=penalty, grad_scale=scale)
    for i, g in enumerate(p.old[1]):
        added, pull = p.penalty(i, penalty)
        eps = compute_eps(types[0]) / compute_eps(p.grads[i].dtype)
        within(p.grads[i], g + 4 * added, eps * (g.abs() + 4 * pull), f"gradient {i}")
        guards_hold(p.grads[i])
        assert torch.equal(p.weights[i].double(), p.old[0][i]), "a weight was written"


def _checks() -> dict[str, Callable[[argparse.Namespace], None]]:
    made: dict[str, Callable[[argparse.Namespace], None]] = {}

    def add(name: str, check: Callable[..., None], **options: Any) -> None:
        made[name] = functools.partial(check, **options)

    add("sgd hypersparse masked", sgd, masked=True)
    add("sgd no penalty, no scope", sgd, penalty="none", scoped=False)
    add("sgd no penalty, no momentum", sgd, penalty="none", momentum=0.0)
    add("sgd first step", sgd, masked=True, first_step=True)
    add("sgd nesterov", sgd, nesterov=True)
    add("sgd dampening maximize", sgd, dampening=0.3, maximize=True)
    add("sgd l1", sgd, penalty="l1")
    add("sgd l2", sgd, penalty="l2")
    add("sgd growing_l2 masked", sgd, penalty="growing_l2", masked=True)
    add("sgd lr as a tensor", sgd, masked=True, lr_tensor=0.07)
    add("sgd grad_scale, found_inf 0", sgd, grad_scale=4.0, found_inf=0.0)
    add("sgd found_inf 1", sgd, masked=True, grad_scale=4.0, found_inf=1.0, skipped=True)
    add("sgd found_inf 2", sgd, masked=True, grad_scale=4.0, found_inf=2.0, skipped=True)
    types = {"bf16": (BF16,), "f16": (F16,), "f64": (F64,), "bf16, f32 state": (BF16, BF16, F32)}
    types["f32, bf16 gradients"] = (F32, BF16, F32)
    for name, kinds in types.items():
        add(f"sgd {name}", sgd, types=kinds, masked=True)
    add("adamw hypersparse masked", adamw, masked=True)
    add("adamw no penalty amsgrad", adamw, penalty="none", amsgrad=True)
    add("adamw growing_l2 amsgrad masked", adamw, penalty="growing_l2", amsgrad=True, masked=True)
    add("adamw lr as a tensor", adamw, masked=True, lr_tensor=0.07)
    add("adamw maximize grad_scale found_inf 0", adamw, maximize=True, grad_scale=4.0, found_inf=0.0)
    add("adamw found_inf 1", adamw, masked=True, found_inf=1.0, skipped=True)
    for name, kinds in types.items():
        add(f"adamw {name}", adamw, types=kinds, masked=True)
    for name, kinds in (("f32", (F32,)), ("bf16", (BF16,)), ("f16", (F16,)), ("f64", (F64,))):
        add(f"sweep_observe {name} masked", observe, types=kinds)
    add("sweep_observe", observe, masked=False)
    for penalty in ("hypersparse", "l1", "l2", "growing_l2"):
        add(f"add_penalty_grad {penalty}", penalty_gradient, penalty=penalty)
    add("add_penalty_grad bf16", penalty_gradient, types=(BF16,))
    add("add_penalty_grad f32, bf16 gradients", penalty_gradient, types=(F32, BF16))
    return made


CHECKS = _checks()
