"""Differentiable sparsification against its formulas in plain PyTorch, its forms, and STR on the digits."""

import math

import pytest
import torch
from method_runs import OPTIMIZERS, Run
from small_networks import NETWORKS, batches
from torch import nn
from torch.nn import functional as F

from sparse_ops import methods, optim
from sparse_ops.optim.reparametrize import SoftThreshold

pytestmark = pytest.mark.filterwarnings("ignore::sparse_ops.methods.CollapseWarning")
INFO = methods.get("differentiable")
LAYERS = {"0.weight": 0, "5.weight": 5, "7.weight": 7}


def weight_in_use(w, beta, groups):
    rows = w.reshape(groups, -1)
    t = torch.sigmoid(beta).reshape(-1, 1) * rows.abs().sum(1, keepdim=True)
    return (rows.sign() * F.relu(rows.abs() - t)).reshape(w.shape)


def filter_in_use(w, beta, groups):
    norms = w.flatten(1).norm(dim=1)
    kept = F.relu(norms - torch.sigmoid(beta) * norms.sum()) / norms
    return w * kept.reshape(-1, *[1] * (w.dim() - 1))


@pytest.mark.parametrize("options, rule", [({}, weight_in_use), ({"group": "filter"}, weight_in_use),
                                           ({"unit": "filter"}, filter_in_use)])  # fmt: skip
def test_a_step_is_the_formula_s(options, rule):
    """Loss and penalty in one literal objective; plain SGD, so that a step shows the gradient."""
    net = NETWORKS["cnn"]()
    twin = NETWORKS["cnn"]()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    method = methods.DifferentiableSparsification(
        net,
        optimizer,
        0.5,
        2,
        total_steps=8,
        strength=1e-3,
        leaky="relu",
        initial_share=0.9,
        controller=False,
        **options,
    )
    betas = {name: form.raw.detach().clone().requires_grad_() for name, form in method.forms.forms.items()}
    assert [b.numel() for b in betas.values()] == ([8, 24, 4] if "group" in options else [1, 1, 1])
    for (
        name,
        i,
    ) in LAYERS.items():  # at first 0.9 of the group's mean magnitude, or of its filters' mean norm
        w = twin[i].weight
        members = w.shape[0] if "unit" in options else w.numel() // betas[name].numel()
        torch.testing.assert_close(torch.sigmoid(betas[name]), torch.full_like(betas[name], 0.9 / members))
    x, y = next(batches("cnn", 1))
    used = {name: rule(twin[i].weight, betas[name], betas[name].numel()) for name, i in LAYERS.items()}
    assert 0 < sum(int((u == 0).sum()) for u in used.values()) == method.forms.zeros()
    loss = F.cross_entropy(torch.func.functional_call(twin, used, (x,)), y)
    for u in used.values():
        a = u.flatten(1).norm(dim=1) if "unit" in options else u[u != 0].abs()
        a = a[a > 0]
        loss = loss + 1e-3 * torch.where(a < 1e-4, 0.5 * 1e-4**-0.5 * a, a**0.5).sum()  # a line below the floor
    weights = [twin[i].weight for i in LAYERS.values()]
    grads = list(torch.autograd.grad(loss, [*weights, *betas.values()]))
    grads[3:] = [g.clamp(-0.02, 0.02) for g in grads[3:]]
    before = [p.detach().clone() for p in (*method.weights.values(), *method.forms.parameters)]
    F.cross_entropy(net(x), y).backward()
    optimizer.step()
    for p, old, grad in zip((*method.weights.values(), *method.forms.parameters), before, grads, strict=True):
        torch.testing.assert_close((old - p) / 0.1, grad, rtol=2e-3, atol=2e-5)


def test_filters_of_doubles_have_the_penalty_of_doubles():
    torch.manual_seed(0)
    form = SoftThreshold(torch.full((1,), -9.0, dtype=torch.float64), relative=True, leaky="relu", unit="filter")
    y = torch.randn(6, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(sum(filter.norm() ** 0.5 for filter in y), y)
    torch.testing.assert_close(form.penalty_gradient(y.detach(), 0.5), expected, rtol=1e-14, atol=0)
    half = form.penalty_gradient(y.detach().bfloat16(), 0.5)
    torch.testing.assert_close(half, expected.bfloat16(), rtol=2e-2, atol=0)


def test_where_thresholds_start():
    net = NETWORKS["cnn"]()
    method = methods.DifferentiableSparsification(
        net, torch.optim.SGD(net.parameters(), lr=0.1), 0.5, 2, total_steps=8, controller=False
    )
    for name, form in method.forms.forms.items():
        n = method.weights[name].numel()
        assert form.raw.item() == pytest.approx(-math.log(10 * n), abs=0.01)


def test_the_penalty_joins_once_whoever_adds_it():
    plain, early = (Run(INFO, OPTIMIZERS["torch sgd"], controller=False) for _ in range(2))
    x, y = next(batches("cnn", 1))
    plain.backward(x, y), early.backward(x, y)
    before = next(iter(early.method.weights.values())).grad.clone()
    early.method.add_penalty_grad_()
    early.method.add_penalty_grad_()
    assert not torch.equal(next(iter(early.method.weights.values())).grad, before)
    plain.optimizer.step(), early.optimizer.step()
    for p, q in zip(plain.net.parameters(), early.net.parameters(), strict=True):
        assert torch.equal(p, q)


def test_maximize_and_the_learning_rate_of_thresholds():
    down, up = NETWORKS["cnn"](), NETWORKS["cnn"]()
    made = []
    for net, flag in ((down, False), (up, True)):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, maximize=flag)
        made.append(methods.DifferentiableSparsification(net, optimizer, 0.5, 1, total_steps=1, strength=1e-2))
        x, y = next(batches("cnn", 1))
        ((-1 if flag else 1) * F.cross_entropy(net(x), y)).backward()
        optimizer.step()
    for p, q in zip(down.parameters(), up.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
    assert made[0].optimizer.param_groups[-1]["lr"] == 0.1
    net = NETWORKS["cnn"]()
    adam = torch.optim.AdamW(net.parameters(), lr=1e-3)
    methods.DifferentiableSparsification(net, adam, 0.5, 1, total_steps=1)
    assert adam.param_groups[-1]["lr"] == pytest.approx(1e-2) and adam.param_groups[-1]["weight_decay"] == 0


def test_whole_filters_vanish():
    run = Run(INFO, OPTIMIZERS["ours sgd"], unit="filter", controller=False, initial_share=0.99).finish()
    masks = {name: mask.to_dense().flatten(1) for name, mask in run.method.masks.items()}
    assert all(torch.equal(m.any(1), m.all(1)) for m in masks.values()) and not all(m.all() for m in masks.values())
    run.method.finalize()


def test_refuses():
    net = NETWORKS["cnn"]()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for bad, message in (
        ({"unit": "row"}, "unit is 'row'"),
        ({"unit": "filter", "group": "filter"}, "group is 'filter', but with unit='filter'"),
        ({"strength": -1.0}, "strength is -1.0, expected 0 < strength < inf"),
        ({"p": 0.0}, "p is 0.0, expected 0 < p < 2"),
        ({"initial_share": 1.0}, "initial_share is 1.0"),
        ({"threshold_lr": -1.0}, "threshold_lr is -1.0"),
    ):
        with pytest.raises(ValueError, match=f"DifferentiableSparsification: {message}"):
            methods.DifferentiableSparsification(net, optimizer, 0.9, **({"total_steps": 1000} | bad))


def test_as_good_as_str_on_the_digits():
    """At equal measured sparsity: 90 %, a multilayer perceptron of 8,832 weights, two splits."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    accuracies = {}
    for name in ("str", "differentiable"):
        scores = []
        for seed in range(2):
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(64, 120), nn.ReLU(), nn.Linear(120, 10))
            order = torch.randperm(len(x))
            train, test = order[:1400], order[1400:]
            optimizer = optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
            method = methods.get(name).cls(net, optimizer, 0.9, epochs=15, total_steps=15 * 28)
            while not method.finished:
                for batch in train[torch.randperm(len(train))].split(50):
                    F.cross_entropy(net(x[batch]), y[batch]).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                method.end_epoch()
            assert abs(method.metrics()["sparsity"] - 0.9) < 0.01
            method.finalize()
            scores.append((net(x[test]).argmax(1) == y[test]).float().mean().item())
        accuracies[name] = sum(scores) / 2
    assert accuracies["differentiable"] > accuracies["str"] - 0.01 > 0.9, accuracies
