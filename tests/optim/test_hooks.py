"""attach: the fused path equals the hooked one, whatever the optimiser; who may have a sweep."""

import copy

import pytest
import torch
from small_networks import cnn, distance, gradients
from torch import nn

from sparse_ops import optim, prunable
from sparse_ops.masks import magnitude_mask
from sparse_ops.optim import Sweep, attach
from sparse_ops.optim.sweep import StepHooks

PAIRS = {
    "sgd": (optim.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}),
    "nesterov": (optim.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    "adamw": (optim.AdamW, torch.optim.AdamW, {"lr": 1e-2, "amsgrad": True}),
    "sgd fused": (optim.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "fused": True}),
}


def swept(cls, options, penalty, masked=False, scopes=None):
    net = cnn()
    weights = prunable.select(net).parameters
    optimizer = cls(net.parameters(), **options)
    sweep = Sweep(weights, scopes, check=True)
    attach(optimizer, sweep)
    sweep.set_penalty(penalty, 0.05, -0.01)
    sweep.track(0.9)
    masks = dict(zip(weights, magnitude_mask(list(weights.values()), 0.5), strict=True))
    if penalty == "growing_l2":
        sweep.set_groups(masks)
    if masked:
        sweep.set_masks(masks)
    return net, optimizer, sweep


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("penalty", ["none", "l1", "l2", "growing_l2", "hypersparse"])
@pytest.mark.parametrize("pair", ["sgd", "adamw"])
def test_fused_equals_hooked_in_each_step(pair, penalty, masked):
    """From equal states one step agrees to 1e-6; so do all of a run where no rounding is amplified."""
    ours, theirs, options = PAIRS[pair]
    a, x, sweep_a = swept(ours, options, penalty, masked)
    b, y, sweep_b = swept(theirs, options, penalty, masked)
    for step in range(5):
        gradients(a, step), gradients(b, step)
        x.step(), y.step()
        assert distance(a, b) <= 1e-6
        b.load_state_dict(a.state_dict())
        y.load_state_dict(copy.deepcopy(x.state_dict()))
        sweep_b.load_state_dict(sweep_a.state_dict())
    if masked:
        for name, mask in sweep_a.masks.items():
            for optimizer, sweep in ((x, sweep_a), (y, sweep_b)):
                weight, pruned = sweep.weights[name], ~mask.to_dense()
                state = [t for t in optimizer.state[weight].values() if t.shape == weight.shape]
                assert len(state) == (3 if pair == "adamw" else 1)
                for t in (weight, *state):
                    assert t[pruned].count_nonzero() == 0


@pytest.mark.parametrize("pair", ["nesterov", "sgd fused"])
def test_scopes_by_layer_and_other_settings(pair):
    ours, theirs, options = PAIRS[pair]
    a, x, _ = swept(ours, options, "hypersparse", scopes=[0, 1, 2])
    b, y, sweep = swept(theirs, options, "hypersparse", scopes=[0, 1, 2])
    for step in range(4):
        gradients(a, step), gradients(b, step)
        x.step(), y.step()
    assert distance(a, b) <= 1e-5
    assert {"threshold/0", "threshold/1", "threshold/2", "scale/2", "hit_rate"} <= set(sweep.metrics())


@pytest.mark.parametrize("pair", PAIRS)
def test_a_penalty_added_before_clipping_replaces_the_step_s(pair):
    ours, theirs, options = PAIRS[pair]
    nets = []
    for cls in (ours, theirs):
        net, optimizer, sweep = swept(cls, options, "hypersparse")
        sweep.set_penalty("hypersparse", 5.0)
        for step in range(3):
            gradients(net, step)
            if step != 1:
                sweep.add_penalty_grad_()
                nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            optimizer.step()
        nets.append(net)
        plain, optimizer, sweep = swept(cls, options, "hypersparse")
        sweep.set_penalty("hypersparse", 5.0)
        for step in range(3):
            gradients(plain, step)
            if step != 1:
                nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            optimizer.step()
        assert distance(net, plain) > 1e-3, "clipping before or after the penalty makes no difference here"
    assert distance(*nets) <= 1e-5


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("again", [True, False], ids=["added again", "added by the step"])
def test_a_skipped_step_does_not_leave_the_penalty_added(pair, set_to_none, again):
    """GradScaler skips without calling the hooks; the next gradients are new ones and get their penalty."""
    ours, theirs, options = PAIRS[pair]
    for cls in (ours, theirs):
        (a, x, sweep_a), (b, y, _) = (swept(cls, options, "l1") for _ in range(2))
        gradients(a, 0)
        sweep_a.add_penalty_grad_()
        x.zero_grad(set_to_none=set_to_none)
        gradients(a, 1, accumulate=True), gradients(b, 1)
        if again:
            sweep_a.add_penalty_grad_()
        x.step(), y.step()
        assert distance(a, b) <= 1e-6


@pytest.mark.parametrize("pair", PAIRS)
def test_gradients_replaced_after_the_penalty_hold_it_once(pair):
    """A clip or an all-reduce may put new tensors into .grad."""
    ours, theirs, options = PAIRS[pair]
    for cls in (ours, theirs):
        (a, x, sweep_a), (b, y, _) = (swept(cls, options, "l1") for _ in range(2))
        gradients(a, 0), gradients(b, 0)
        sweep_a.add_penalty_grad_()
        sweep_a.add_penalty_grad_()  # the second call finds it there
        for p in a.parameters():
            p.grad = p.grad * 1.0
        x.step(), y.step()
        assert distance(a, b) <= 1e-6


def test_lbfgs_evaluates_the_penalty_with_its_closure():
    """A quadratic under l2: the optimum of (w - t)^2 / 2 + strength w^2 is t / (1 + 2 strength)."""
    layer = nn.Linear(6, 5, bias=False)
    target = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.LBFGS(layer.parameters(), lr=1.0, max_iter=30)
    sweep = Sweep({"weight": layer.weight})
    attach(optimizer, sweep)
    sweep.set_penalty("l2", 0.25)
    (mask,) = magnitude_mask([target], 0.5)
    sweep.set_masks({"weight": mask})

    def closure():
        optimizer.zero_grad()
        loss = 0.5 * (layer.weight - target).square().sum()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    torch.testing.assert_close(layer.weight.detach(), torch.where(mask.to_dense(), target / 1.5, 0.0))


def test_fused_torch_optimisers_under_grad_scaler():
    """They get scaled gradients: the hooks scale the penalty with them, and nothing advances in a skipped step."""
    nets = []
    for fused in (True, False):
        net, optimizer, sweep = swept(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "fused": fused}, "hypersparse")
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        for step in range(4):
            gradients(net, step)
            for p in net.parameters():
                p.grad.mul_(scaler.get_scale())
            if step == 2:
                net[0].weight.grad.fill_(float("nan"))
                before = [p.clone() for p in net.parameters()], sweep.steps, sweep.report.clone()
            scaler.scale(torch.zeros(()))
            scaler.step(optimizer)
            scaler.update()
            if step == 2:
                torch.testing.assert_close(([*net.parameters()], sweep.steps, sweep.report), before, rtol=0, atol=0)
        nets.append(net)
    assert distance(*nets) <= 1e-5


def test_parameters_without_gradient_stay_and_are_still_counted():
    for cls in PAIRS["sgd"][:2]:
        net, optimizer, sweep = swept(cls, PAIRS["sgd"][2], "hypersparse", masked=True)
        gradients(net, 0)
        net[5].weight.grad = None
        before = net[5].weight.clone()
        optimizer.step()  # check=True compares the threshold with that of all weights
        assert torch.equal(net[5].weight, before)
        assert sweep.metrics()["exact_passes"] <= 2  # of the first step, without a bracket


def test_detach_and_errors():
    net, optimizer, sweep = swept(torch.optim.SGD, {"lr": 0.1}, "l1")
    with pytest.raises(ValueError, match="has a sparsifier already; call its finalize"):
        attach(optimizer, sweep)
    optimizer._sparse_ops_attachment.detach()
    gradients(net, 0)
    before = [p - 0.1 * p.grad for p in net.parameters()]
    optimizer.step()
    torch.testing.assert_close([*net.parameters()], before)
    assert attach(optimizer, sweep).sweep is sweep
    some = torch.optim.SGD(net[5].parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"does not update 0.weight and 1 more: optimizer and model do not match"):
        attach(some, sweep)
    with pytest.raises(TypeError, match="the optimizer is int"):
        attach(3, sweep)


@pytest.mark.parametrize("pair", ["sgd", "adamw"])
def test_a_skip_that_only_the_device_knows_changes_nothing(pair, monkeypatch):
    """As on CUDA, where the host does not ask: first a skipped step without state, then one with state."""
    monkeypatch.setattr(optim.SGD, "_skips", lambda self: False)
    monkeypatch.setattr(optim.AdamW, "_skips", lambda self: False)
    cls, options = PAIRS[pair][0], PAIRS[pair][2]
    (a, x, sweep_a), (b, y, sweep_b) = (swept(cls, options, "hypersparse", masked=True) for _ in range(2))
    for step in range(4):
        gradients(a, step)
        x.found_inf, x.grad_scale = torch.ones(()), torch.ones(())
        x.step()
        x.found_inf = torch.zeros(())
        x.step()
        gradients(b, step)
        y.step()
        assert distance(a, b) == 0
    assert sweep_a.metrics() == sweep_b.metrics()
    torch.testing.assert_close(x.state_dict()["state"], y.state_dict()["state"], rtol=0, atol=0)


@pytest.mark.parametrize("make", [optim.SGD, torch.optim.SGD], ids=["ours", "torch"])
@pytest.mark.parametrize("closure", [False, True])
def test_a_step_that_leaves_the_weights_alone(make, closure):
    """Nothing moves, gradients stay, the step counts, and `before` sees gradients that no mask has touched."""
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 3)
    optimizer = make(net.parameters(), lr=0.1, momentum=0.9)
    sweep = Sweep({"weight": net.weight})
    sweep.set_masks(dict(zip(["weight"], magnitude_mask([net.weight], 0.5), strict=True)))
    seen, dead = [], net.weight == 0
    leave = {1, 3}

    def before():
        seen.append(("before", sweep.steps, net.weight.grad[dead].count_nonzero().item()))
        return sweep.steps not in leave

    sweep.hooks = StepHooks(before, lambda: seen.append(("after", sweep.steps)))
    attach(optimizer, sweep)

    def evaluate():
        net.zero_grad()
        loss = net(torch.randn(5, 4)).square().sum()
        loss.backward()
        return loss

    for step in range(5):
        old = [p.detach().clone() for p in net.parameters()], copy.deepcopy(optimizer.state_dict()["state"])
        if closure:
            assert optimizer.step(evaluate) > 0
        else:
            evaluate()
            optimizer.step()
        assert all(p.grad is not None for p in net.parameters())
        now = [p.detach() for p in net.parameters()], optimizer.state_dict()["state"]
        if step in leave:
            torch.testing.assert_close(now, old, rtol=0, atol=0)
        else:
            assert not any(torch.equal(a, b) for a, b in zip(now[0], old[0], strict=True))
    assert seen == [x for i in range(5) for x in (("before", i, int(dead.sum())), ("after", i + 1))]
