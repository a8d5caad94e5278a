"""STR against the method written out in plain PyTorch, its controller on numbers by hand, and what it leaves behind."""

import copy
import math

import pytest
import torch
from method_runs import OPTIMIZERS, Run
from small_networks import NETWORKS, batches
from torch import nn
from torch.nn import functional as F

from sparse_ops import methods, optim
from sparse_ops.methods.controller import Controller

pytestmark = pytest.mark.filterwarnings("ignore::sparse_ops.methods.CollapseWarning")
INFO = methods.get("str")


class Literal(nn.Module):
    """The CNN of the tests with every weight as the paper writes it, one s a layer."""

    def __init__(self, net, s):
        super().__init__()
        self.net = copy.deepcopy(net)
        self.s = nn.ParameterList([nn.Parameter(torch.full((1,), s)) for _ in range(3)])

    def forward(self, x):
        used = [
            w.sign() * F.relu(w.abs() - torch.sigmoid(s))
            for w, s in zip([self.net[i].weight for i in (0, 5, 7)], self.s, strict=True)
        ]
        names = ["0.weight", "5.weight", "7.weight"]
        return torch.func.functional_call(self.net, dict(zip(names, used, strict=True)), (x,))


@pytest.mark.parametrize("kind", ["ours sgd", "torch sgd"])
def test_trajectory_is_the_paper_s(kind):
    """Plain autograd, SGD with one decay for the thresholds and another for the rest, half a cosine by epochs."""
    net = NETWORKS["cnn"]()
    literal = Literal(net, -3.0)
    plain = torch.optim.SGD(literal.net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    plain.add_param_group({"params": list(literal.s), "weight_decay": 0.05})
    optimizer = OPTIMIZERS[kind](net.parameters())
    method = methods.STR(
        net, optimizer, 0.9, 3, total_steps=12, initial_threshold=-3.0, threshold_decay=0.05, controller=False
    )
    for epoch in range(3):
        for group in plain.param_groups:
            group["lr"] = 0.05 * (1 + math.cos(math.pi * epoch / 3)) / 2
        for x, y in batches("cnn", 4, epoch):
            for model, steps in ((literal, plain), (net, optimizer)):
                F.cross_entropy(model(x), y).backward()
                steps.step()
                steps.zero_grad()
        method.end_epoch()
    for form, s in zip(method.forms.forms.values(), literal.s, strict=True):
        torch.testing.assert_close(form.raw, s, rtol=1e-5, atol=1e-6)
        assert abs(s.item() + 3) > 1e-3, "the thresholds have moved"
    for p, q in zip(method.weights.values(), [literal.net[i].weight for i in (0, 5, 7)], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_finalize_leaves_the_weights_in_use_and_nothing_else():
    run = Run(INFO, OPTIMIZERS["ours sgd"], controller=False)
    before = {name: id(p) for name, p in run.method.weights.items()}
    assert len(run.optimizer.param_groups) == 2
    assert "0.parametrizations.weight.original" in run.net.state_dict()
    run.finish()
    x, _ = next(batches("cnn", 1))
    run.net.eval()
    expected, in_use = run.net(x), run.method._effective()
    thresholds = {name: torch.sigmoid(form.raw).item() for name, form in run.method.forms.forms.items()}
    for name, w in run.method.weights.items():
        wanted = w.detach().sign() * F.relu(w.detach().abs() - thresholds[name])
        torch.testing.assert_close(in_use[name], wanted, rtol=1e-6, atol=1e-8)
    net = run.method.finalize()
    assert torch.equal(net(x), expected)
    assert list(net.state_dict()) == list(NETWORKS["cnn"]().state_dict())
    assert {name: id(p) for name, p in net.named_parameters() if name in before} == before
    assert type(net[0]) is nn.Conv2d and net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert len(run.optimizer.param_groups) == 1
    assert {id(p) for p in run.optimizer.state} == {id(p) for p in net.parameters()}


def test_detach_gives_the_trained_weights_back():
    run = Run(INFO, OPTIMIZERS["torch adamw"], controller=False)
    run.epoch()
    trained = {name: w.detach().clone() for name, w in run.method.weights.items()}
    run.method.detach()
    assert type(run.net[5]) is nn.Linear and len(run.optimizer.param_groups) == 1
    assert all(torch.equal(dict(run.net.named_parameters())[name], w) for name, w in trained.items())
    run.step(*next(batches("cnn", 1)))


def test_a_constructor_that_fails_leaves_the_model_as_it_was():
    net = NETWORKS["cnn"]()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for bad, message in (
        ({"group": "row"}, "group is 'row'"),
        ({"threshold_decay": 0.0}, "threshold_decay is 0.0, expected a finite number > 0"),
        ({"initial_threshold": math.inf}, "initial_threshold is inf"),
        ({"total_steps": 3}, "total_steps is 3, less than one in each of the 100 epochs"),
    ):
        with pytest.raises(ValueError, match=f"STR: {message}"):
            methods.STR(net, optimizer, 0.9, **({"total_steps": 1000} | bad))
        assert type(net[0]) is nn.Conv2d and len(optimizer.param_groups) == 1


def test_thresholds_by_filter_and_the_guard():
    run = Run(INFO, OPTIMIZERS["ours sgd"], controller=False, group="filter")
    assert [tuple(form.raw.shape) for form in run.method.forms.forms.values()] == [(8,), (24,), (4,)]
    run.epoch()
    with torch.no_grad():
        run.method.forms.forms["7.weight"].raw.fill_(10.0)  # above every weight
    with pytest.warns(methods.CollapseWarning, match="no weight survives in 7.weight"):
        run.method.end_epoch()
    run.method.strict = True
    with pytest.raises(ValueError, match=r"no weight survives in 7\.weight"):
        run.method.finalize()


def test_one_tied_weight_has_one_threshold():
    net = NETWORKS["cnn"]()
    net.insert(5, nn.Linear(72, 72, bias=False))
    net.insert(6, nn.Linear(72, 72, bias=False))
    net[6].weight = net[5].weight
    method = methods.STR(net, optim.SGD(net.parameters(), lr=0.1), 0.5, 1, total_steps=4, controller=False)
    assert net[5].parametrizations.weight[0] is net[6].parametrizations.weight[0]
    assert sum(name.endswith("raw") for name, _ in net.named_parameters()) == 4
    method.finalize()
    assert net[5].weight is net[6].weight


def test_the_controller_by_hand():
    control = Controller(target=0.9, initial=2.0, total_steps=1000, reach=12.0)
    assert control.every == 2 and control.due(4) and not control.due(5)
    first = control.steer(0, 0.1, 1e-6)  # as wanted: no error
    assert first == 2.0 and control.wanted(0) == pytest.approx(0.1)
    assert control.wanted(350) == pytest.approx(0.9 - 0.8 * 0.5**3) == pytest.approx(0.8)
    assert control.wanted(700) == control.wanted(10**6) == 0.9
    error = math.log(0.25 / 0.2)
    assert control.steer(350, 0.75, 1e-6) == pytest.approx(2 * math.exp(8 * error + 0.2 * error))
    assert control.steer(350, 0.75, 1e-6) == pytest.approx(2 * math.exp(8 * error + 0.4 * error))
    assert control.steer(1000, 1.0, 1e-6) == pytest.approx(2 * math.exp(-12))  # nothing left: the bound
    twin = Controller(0.9, 2.0, 1000, 12.0)
    twin.load_state_dict(control.state_dict())
    assert twin.steer(800, 0.91, 1e-6) == control.steer(800, 0.91, 1e-6)
    assert Controller(0.0, 1.0, 5, 4.0).steer(5, 0.2, 1e-3) < 1.0  # a target of no zeros, and a run of five steps


@pytest.mark.parametrize("kind", ["ours sgd", "torch adamw"])
def test_the_controller_reaches_the_sparsity(kind):
    rng = torch.Generator().manual_seed(0)
    x, teacher = torch.randn(512, 20, generator=rng), torch.randn(20, 4, generator=rng)
    y = (x @ teacher).argmax(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 4))
    optimizer = OPTIMIZERS[kind](net.parameters())
    method = methods.STR(net, optimizer, 0.85, epochs=30, total_steps=30 * 16)
    while not method.finished:
        for xs, ys in zip(x.split(32), y.split(32), strict=True):
            F.cross_entropy(net(xs), ys).backward()
            optimizer.step()
            optimizer.zero_grad()
        method.end_epoch()
    net = method.finalize()
    zeros = sum(int((net[i].weight == 0).sum()) for i in (0, 2))
    assert abs(zeros / 3072 - 0.85) < 0.01 and method.metrics()["sparsity"] == zeros / 3072
    assert (net(x).argmax(1) == y).float().mean() > 0.85


def test_a_controller_that_misses_says_so():
    with pytest.warns(UserWarning, match=r"STR: .* % of the weights are zero, 9.02 % were wanted") as seen:
        Run(INFO, OPTIMIZERS["ours sgd"], sparsity=0.09).finish().method.finalize()
    assert seen[-1].filename == __file__
    run, other = Run(INFO, OPTIMIZERS["ours sgd"], controller=False), Run(INFO, OPTIMIZERS["ours sgd"])
    with pytest.raises(ValueError, match="STR: the checkpoint has controller True, here it is False"):
        run.method.load_state_dict(other.method.state_dict())


def test_a_miss_by_more_than_a_hundredth_is_told_of():
    method = Run(methods.get("str"), OPTIMIZERS["ours sgd"]).method
    target = method.controller.target
    method._tell_where_missed(target + 0.0099)
    method._tell_where_missed(target - 0.0099)
    for missed in (target + 0.0101, target - 0.0101):
        with pytest.warns(UserWarning, match=rf"STR: {100 * missed:.2f} % of the weights are zero, .* were wanted"):
            method._tell_where_missed(missed)
