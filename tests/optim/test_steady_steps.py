"""Steps whose lists C++ keeps: torch's rule and counts, masks, penalties, GradScaler."""

import pytest
import torch
from steady_optimizers import RULES, assert_same, bound, everything, made, parameters, set_grads, step, torchs
from torch import nn

from sparse_ops import extension
from sparse_ops.masks import PackedMask
from sparse_ops.optim import Sweep, attach, fused

pytestmark = pytest.mark.skipif(extension.failure() is not None, reason="needs the C++ kernels")
ADAMW = [rule for rule in RULES if rule != "sgd"]
SETTINGS = [(rule, {"maximize": True}) for rule in RULES]
SETTINGS += [("sgd", {"dampening": 0.3}), ("sgd", {"nesterov": True}), ("adamw", {"eps": 1e-3, "betas": (0.5, 0.9)})]


@pytest.mark.parametrize("rule, settings", SETTINGS)
def test_the_rules_are_those_of_torch(rule, settings):
    ours, theirs = made(rule, **settings), torchs(rule, **settings)
    for seed in range(8):
        step(ours, seed)
        step(theirs, seed)
    assert ours._steady
    for p, q in zip(parameters(ours), parameters(theirs), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("begin", [0, 2**24 - 5])  # where float32 ends to count
@pytest.mark.parametrize("rule", ADAMW)
def test_steps_are_counted_as_torch_counts_them(rule, begin):
    ours, theirs = made(rule), torchs(rule)
    for optimizer in (ours, theirs):
        for seed in range(12):
            set_grads(optimizer, seed)
            if seed < 2:
                parameters(optimizer)[2].grad = None  # its count stays two behind
            optimizer.step()
            if seed == 4:
                for state in optimizer.state.values():
                    state["step"] += begin
    assert ours._steady
    counts = [[optimizer.state[p]["step"] for p in parameters(optimizer)] for optimizer in (ours, theirs)]
    for x, y, p, q in zip(*counts, parameters(ours), parameters(theirs), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape and torch.equal(x, y)
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_a_step_that_is_skipped_inside_changes_and_counts_nothing(rule, monkeypatch):
    monkeypatch.setattr(fused.SweepInside, "_skips", lambda self: False)  # found_inf is then left to C++
    a, b = bound(made(rule)), bound(made(rule))
    kept = next(iter(a._steady.values())).bound
    before = [(name, t.clone()) for name, t in everything(a)]
    a.found_inf = torch.tensor(1.0)
    step(a, 3)
    for (name, x), (_, y) in zip(before, everything(a), strict=True):
        assert torch.equal(x, y), name
    a.found_inf = torch.tensor(0.0)
    for optimizer in (a, b):
        step(optimizer, 4)
    assert_same(a, b)
    assert next(iter(a._steady.values())).bound is kept


@pytest.mark.parametrize("rule", RULES)
def test_found_inf_and_scale(rule):
    a, b = made(rule), made(rule, False)
    for optimizer in (a, b):
        for seed in range(6):
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(float(seed == 4))
            step(optimizer, seed)
    assert a._steady
    assert_same(a, b)


@pytest.mark.parametrize("rule", RULES)
def test_versions_are_counted_and_a_stale_backward_raises(rule):
    optimizer = bound(made(rule))
    p = parameters(optimizer)[1]
    loss = (p * p).sum()
    written = [t for q in parameters(optimizer) for t in (q, *optimizer.state[q].values())]
    versions = [t._version for t in written]
    kept = next(iter(optimizer._steady.values())).bound
    optimizer.step()
    assert next(iter(optimizer._steady.values())).bound is kept
    assert all(t._version > version for t, version in zip(written, versions, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("penalty", ["l2", "hypersparse"])
def test_masks_and_penalties_that_change(penalty, rule):
    a, b = made(rule, penalty=penalty), made(rule, False, penalty=penalty)
    for optimizer in (a, b):
        for seed in range(12):
            if seed == 4:
                masks = {name: torch.rand(w.shape, generator=torch.Generator().manual_seed(1)) < 0.5
                         for name, w in optimizer.sweep.weights.items()}  # fmt: skip
                optimizer.sweep.set_masks({name: PackedMask.from_dense(keep) for name, keep in masks.items()})
            if seed == 7:
                optimizer.sweep.set_masks({})
            if seed == 9:
                optimizer.sweep.set_penalty("l1", 1e-3)
            step(optimizer, seed)
    assert a._steady
    assert_same(a, b)
    assert torch.equal(a.sweep.report, b.sweep.report)
    assert torch.equal(a.sweep.coefficients, b.sweep.coefficients)


@pytest.mark.parametrize("rule", RULES)
def test_more_groups_than_a_sweep_remembers_otherwise_stay_bound(rule):
    cls, _, settings = RULES[rule]
    rng = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(8, 8, generator=rng)) for _ in range(40)]
    optimizer = cls([{"params": [p]} for p in params], **settings)
    sweep = Sweep({f"w{i}": p for i, p in enumerate(params)})
    sweep.track(0.9)
    sweep.set_penalty("hypersparse", 1e-3)
    attach(optimizer, sweep)
    kept = [steady.bound for steady in bound(optimizer)._steady.values()]
    for seed in range(3, 6):
        step(optimizer, seed)
    assert all(steady.bound is old for steady, old in zip(optimizer._steady.values(), kept, strict=True))


def test_a_sweep_remembers_no_more_lists_than_can_be_in_use():
    optimizer = made("sgd", penalty="l2")
    sweep, params = optimizer.sweep, parameters(optimizer)
    for seed in range(100):
        sweep.operands(params[: 1 + seed % 4] * (1 + seed // 4))
    assert len(sweep._operands) < 32
    latest = sweep.operands(params)
    sweep.operands(params[:1])
    assert sweep.operands(params) is latest
