"""RigL and SET: what drops and grows, when, from which start, and a whole run against a literal loop."""

import copy
import math
import warnings

import method_runs
import numpy as np
import pytest
import torch
from method_runs import OPTIMIZERS, Run, by_sorting
from small_networks import NETWORKS, batches
from torch import nn

from sparse_ops import masks, methods

pytestmark = pytest.mark.filterwarnings("ignore::sparse_ops.methods.CollapseWarning")
RIGL, SET = methods.get("rigl"), methods.get("set")


def dense_masks(method):
    return {name: mask.to_dense() for name, mask in method.masks.items()}


def make(net=None, cls=methods.RigL, sparsity=0.75, total_epochs=10, total_steps=400, **options):
    net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5)) if net is None else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    return cls(net, optimizer, sparsity, total_epochs, total_steps=total_steps, **options)


def test_the_fraction_falls_along_half_a_cosine():
    method = make()
    found = [method.drop_fraction(t) for t in (0, 75, 100, 150, 200, 299, 300, 399)]
    quarter = 0.15 * (1 + math.sqrt(0.5))
    last = 0.15 * (1 - math.cos(math.pi / 300))
    assert found == pytest.approx([0.3, quarter, 0.225, 0.15, 0.075, last, 0, 0])
    assert [t for t in range(400) if method.changes_mask(t)] == [0, 100, 200]
    constant = make(cls=methods.SET, alpha=0.2, delta_t=7, t_end=0.1)
    assert [constant.drop_fraction(t) for t in (0, 39, 40)] == [0.2, 0.2, 0]
    assert [t for t in range(400) if constant.changes_mask(t)] == [0, 7, 14, 21, 28, 35]
    assert make(cls=methods.SET, anneal="cosine").drop_fraction(150) == pytest.approx(0.15)
    assert make(anneal="constant").drop_fraction(299) == 0.3


@pytest.mark.parametrize("name", ["ours sgd", "torch sgd"])
def test_a_whole_run_against_a_literal_loop(name):
    """Also what grows back, which keeps value and momentum, and the layer that is dense under ERK."""
    run = Run(RIGL, OPTIMIZERS[name], prepare=lambda net: net.double(), alpha=0.9, sparsity=0.6)
    net = NETWORKS["cnn"]().double()
    optimizer = OPTIMIZERS["torch sgd"](net.parameters())
    weights = {n: p for n, p in net.named_parameters() if n in run.method.weights}
    live = dense_masks(run.method)
    assert [int(m.sum()) for m in live.values()] == [
        m.numel() - z for m, z in zip(live.values(), erk(0.6), strict=True)
    ]
    for n, w in weights.items():
        w.data *= live[n]
    step, grown_back, moved = 0, 0, 0
    for epoch in range(5):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * epoch / 5)) / 2
        for x, y in batches("cnn", 4, epoch):
            run.step(x.double(), y)
            nn.functional.cross_entropy(net(x.double()), y).backward()
            if step < 15 and step % 3 == 0:
                fraction = 0.9 / 2 * (1 + math.cos(math.pi * step / 15))
                for n, w in weights.items():
                    before, values = live[n], w.detach().clone()
                    after = by_sorting(values.numpy(), before.numpy(), w.grad.numpy(), fraction)
                    live[n] = torch.from_numpy(after)
                    new = live[n] & ~before
                    for t in [w.data, *(t for t in optimizer.state[w].values() if t is not None)]:
                        t[new] = 0
                    dropped = ~torch.from_numpy(by_sorting(values.numpy(), before.numpy(), 0 * after, fraction))
                    grown_back += int((before & live[n] & dropped).sum())
                    moved += int(new.sum())
            else:
                for n, w in weights.items():
                    w.grad *= live[n]
                optimizer.step()
            for n, w in weights.items():
                w.data *= live[n]
                for t in optimizer.state[w].values():
                    t *= live[n]
            optimizer.zero_grad()
            step += 1
            assert run.method.masks.keys() == live.keys()
            for n, mask in dense_masks(run.method).items():
                assert torch.equal(mask, live[n]), (step, n)
            for p, q in zip(run.net.parameters(), net.parameters(), strict=True):
                assert (p - q).norm() <= 1e-10 * q.norm()
        run.method.end_epoch()
    assert moved > 100 and grown_back > 10


def erk(sparsity):
    return masks.layer_zeros(
        [w.shape for w in Run(RIGL, OPTIMIZERS["torch sgd"]).method.weights.values()], sparsity, "erk"
    )


@pytest.mark.parametrize("info", [RIGL, SET], ids=["rigl", "set"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_changes_the_mask_changes_nothing_else(info, name):
    run = Run(info, OPTIMIZERS[name], total_epochs=3, delta_t=2, t_end=1.0)
    counts = {n: int(m.sum()) for n, m in dense_masks(run.method).items()}
    changed = 0
    for step, (x, y) in enumerate(batches("cnn", 12)):
        before = copy.deepcopy((dict(run.net.named_parameters()), run.optimizer.state_dict()["state"]))
        live = dense_masks(run.method)
        due = step % 2 == 0
        assert run.method.changes_mask(step) == due
        run.step(x, y)
        now = dense_masks(run.method)
        assert {n: int(m.sum()) for n, m in now.items()} == counts
        names = [n for n, _ in run.net.named_parameters()]
        for i, (n, p) in enumerate(run.net.named_parameters()):
            if n not in now:
                assert torch.equal(p, before[0][n]) == due
                continue
            new = now[n] & ~live[n]
            assert due or torch.equal(now[n], live[n])
            changed += int(new.sum())
            assert p.detach()[new].count_nonzero() == 0 and p.detach()[~now[n]].count_nonzero() == 0
            if due:
                stay = now[n] & live[n]
                assert torch.equal(p.detach()[stay], before[0][n].detach()[stay])
            for key, t in before[1].get(i, {}).items():
                t_now = run.optimizer.state_dict()["state"][i][key]
                if t.shape == p.shape:
                    assert t_now[new].count_nonzero() == t_now[~now[n]].count_nonzero() == 0
                    assert not due or torch.equal(t_now[stay], t[stay])
                else:
                    assert torch.equal(t_now, t) == due
        assert len(names) == 8
    assert changed > 100


@pytest.mark.parametrize("scope", ["erk", "uniform", "global"])
def test_the_start_has_the_budget_s_zeros_at_random(scope):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(100, 200), nn.Linear(200, 50), nn.Linear(50, 2))
    torch.manual_seed(2)
    first = make(copy.deepcopy(net), scope=scope, sparsity=0.9)
    torch.manual_seed(2)
    again = make(copy.deepcopy(net), scope=scope, sparsity=0.9)
    other = make(copy.deepcopy(net), scope=scope, sparsity=0.9)
    zeros = [mask.zeros for mask in first.masks.values()]
    assert sum(zeros) == round(0.9 * 30100)
    if scope != "global":
        assert zeros == masks.layer_zeros([w.shape for w in first.weights.values()], 0.9, scope)
    for name, mask in dense_masks(first).items():
        assert torch.equal(mask, again.masks[name].to_dense())
        assert torch.equal(first.weights[name] != 0, mask)
        assert torch.equal(first.weights[name].detach(), net.get_parameter(name) * mask)
    assert not torch.equal(first.masks["0.weight"].bits, other.masks["0.weight"].bits)
    live = first.masks["0.weight"].to_dense()
    share = live.double().mean()
    deviation = (share * (1 - share) / 100).sqrt()  # of the share in half of the columns, 10,000 weights
    assert (
        abs(live[:, :50].double().mean() - share) < 4 * deviation
        and abs(live[:100].double().mean() - share) < 4 * deviation
    )


def test_layers_with_all_or_one_of_their_weights():
    net = nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 1), nn.Linear(1, 1))
    method = make(net, sparsity={"0": 0.9, "1": 0.0, "2": 0.0}, total_steps=20, delta_t=2, t_end=1.0, alpha=1.0)
    assert [mask.zeros for mask in method.masks.values()] == [1080, 0, 0]
    erk = make(copy.deepcopy(net), sparsity=0.9, total_steps=20, delta_t=2)
    assert [mask.zeros for mask in erk.masks.values()][1:] == [0, 0]
    for one in (method, erk):
        zeros = [mask.zeros for mask in one.masks.values()]
        for _ in range(10):
            nn.functional.mse_loss(one.model(torch.randn(8, 30)), torch.randn(8, 1)).backward()
            one.optimizer.step()
            one.optimizer.zero_grad()
        assert [mask.zeros for mask in one.masks.values()] == zeros
    static = make(total_steps=20, t_end=0.0)
    assert not any(static.changes_mask(t) for t in range(20)) and static.drop_fraction(0) == 0
    rare = make(total_steps=20, delta_t=20)
    assert [t for t in range(20) if rare.changes_mask(t)] == [0]


def test_a_short_run_is_fitted():
    for steps, delta_t in ((4000, 100), (1334, 100), (420, 31), (40, 3), (20, 2), (2, 2), (1, 2)):
        for cls in (methods.RigL, methods.SET):
            method = make(cls=cls, total_steps=steps, **cls.for_epochs(1))
            assert method.delta_t == method.report().settings["delta_t"] == delta_t
            changes = sum(method.changes_mask(t) for t in range(steps))
            assert changes >= min(10, math.ceil(method.end_step / 2)) and changes > 0
    assert make(total_steps=400, delta_t=7, fit=True).delta_t == 7
    assert make(total_steps=40, t_end=0.0, fit=True).drop_fraction(0) == 0


def test_few_zeros_and_a_large_fraction():
    """More drop than there are zeros: the dropped ones themselves may grow."""
    method = make(sparsity=0.05, total_steps=40, delta_t=2, alpha=0.9, scope="uniform")
    zeros = [mask.zeros for mask in method.masks.values()]
    assert zeros == [30, 8]
    nn.functional.mse_loss(method.model(torch.randn(8, 20)), torch.randn(8, 5)).backward()
    weight, live = method.weights["0.weight"].detach().clone(), method.masks["0.weight"].to_dense()
    grad = method.weights["0.weight"].grad.clone()
    method.optimizer.step()
    expected = by_sorting(weight.numpy(), live.numpy(), grad.numpy(), 0.9)
    assert np.array_equal(method.masks["0.weight"].to_dense().numpy(), expected)
    assert [mask.zeros for mask in method.masks.values()] == zeros


@pytest.mark.parametrize("name", ["ours sgd", "torch sgd"])
def test_clipping_leaves_the_gradients_dense_where_the_mask_changes(name):
    clipped, plain = Run(RIGL, OPTIMIZERS[name]), Run(RIGL, OPTIMIZERS[name])
    for step, (x, y) in enumerate(batches("cnn", 8)):
        clipped.backward(x, y)
        clipped.method.add_penalty_grad_()
        zero = [(w.grad[~clipped.method.masks[n].to_dense()] == 0).all() for n, w in clipped.method.weights.items()]
        assert all(zero) == (step % 3 != 0)
        nn.utils.clip_grad_norm_(clipped.net.parameters(), 1e9)
        clipped.optimizer.step()
        clipped.optimizer.zero_grad()
        plain.step(x, y)
        for n, mask in clipped.method.masks.items():
            assert torch.equal(mask.bits, plain.method.masks[n].bits)
    method_runs.same(clipped, plain, 1e-6)


def test_a_layer_without_a_gradient_keeps_its_mask():
    run = Run(RIGL, OPTIMIZERS["ours sgd"])
    before = dense_masks(run.method)
    run.net[5].weight.requires_grad_(False)
    run.step(*next(batches("cnn", 1)))
    after = dense_masks(run.method)
    assert torch.equal(after["5.weight"], before["5.weight"])
    assert not torch.equal(after["0.weight"], before["0.weight"])


def test_set_grows_at_random():
    run = Run(SET, OPTIMIZERS["ours sgd"], alpha=1.0)  # everything drops: what grows is a new random mask
    before = run.method.masks["5.weight"].to_dense()
    run.step(*next(batches("cnn", 1)))
    after = run.method.masks["5.weight"].to_dense()
    share = before.double().mean().item()
    both = (before & after).double().mean().item()
    assert abs(both - share**2) < 4 * math.sqrt(share**2 * (1 - share**2) / before.numel())


@pytest.mark.parametrize("info, alike", [(SET, True), (RIGL, False)], ids=["set", "rigl"])
def test_what_grows_depends_on_the_gradient_in_rigl_alone(info, alike):
    runs = [Run(info, OPTIMIZERS["ours sgd"], alpha=1.0) for _ in range(2)]
    for run, batch in zip(runs, batches("cnn", 2), strict=True):
        run.step(*batch)
    a, b = (dense_masks(run.method)["5.weight"] for run in runs)
    assert torch.equal(a, b) == alike


def test_set_goes_on_with_the_random_numbers_of_its_checkpoint():
    whole, resumed = (Run(SET, OPTIMIZERS["ours sgd"], alpha=1.0) for _ in range(2))
    whole.epoch()
    resumed.method._random.manual_seed(1)  # a start of its own
    for part in ("net", "optimizer", "method"):
        getattr(resumed, part).load_state_dict(copy.deepcopy(getattr(whole, part).state_dict()))
    resumed.number = whole.number
    whole.finish(), resumed.finish()
    masks_of = dense_masks(whole.method), dense_masks(resumed.method)
    assert all(torch.equal(masks_of[0][name], masks_of[1][name]) for name in masks_of[0])


def test_metrics_and_the_report_say_how_much_drops():
    run = Run(RIGL, OPTIMIZERS["ours sgd"])
    assert "drop_fraction" not in run.method.metrics()
    run.epoch()
    assert run.method.metrics()["drop_fraction"] == pytest.approx(0.25 * (1 + math.cos(math.pi * 3 / 15)))
    run.finish()
    assert run.method.metrics()["drop_fraction"] == 0
    assert run.method.report().to_dict()["settings"]["end_step"] == 15


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"delta_t": 1}, ValueError, "delta_t is 1, expected 2 or more"),
        ({"delta_t": 2.5}, TypeError, "delta_t is 2.5"),
        ({"delta_t": 401}, ValueError, "delta_t is 401, but the run has 400 steps.* at most 299 lets"),
        ({"total_steps": 12}, ValueError, r"delta_t is 100, but the run has 12 steps.* at most 8 lets it change again"),
        ({"total_steps": 12, "t_end": 0.2}, ValueError, "the first one alone; t_end=0 says that it shall stay"),
        ({"alpha": 1.5}, ValueError, r"alpha is 1.5, expected a number in \[0, 1\]"),
        ({"alpha": float("nan")}, ValueError, "alpha is nan"),
        ({"alpha": "0.3"}, TypeError, "alpha is '0.3'"),
        ({"t_end": -0.1}, ValueError, "t_end is -0.1"),
        ({"anneal": "linear"}, ValueError, "anneal is 'linear'"),
        ({"total_steps": 9}, ValueError, "total_steps is 9, less than one in each of the 10 epochs"),
        ({"total_steps": 9.0}, TypeError, "total_steps is 9.0"),
        ({"scope": "uniform", "sparsity": {"*": 0.5}}, ValueError, "scope is 'uniform', but sparsity gives"),
    ],
)
def test_bad_settings(options, error, message):
    for cls in (methods.RigL, methods.SET):
        with pytest.raises(error, match=message):
            make(cls=cls, **options)


def test_bad_gradients_and_other_settings_in_a_checkpoint():
    run = Run(RIGL, OPTIMIZERS["torch sgd"])
    run.backward(*next(batches("cnn", 1)))
    run.net[5].weight.grad[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"the gradient of 5.weight holds 1 non-finite values \(nan\) in step 1"):
        run.optimizer.step()
    state = run.method.state_dict()
    with pytest.raises(ValueError, match="RigL: the checkpoint has delta_t 3, here it is 4"):
        Run(RIGL, OPTIMIZERS["torch sgd"], delta_t=4).method.load_state_dict(state)


def test_the_guard_looks_at_the_start():
    with pytest.warns(methods.CollapseWarning, match="some outputs lose all their inputs"):
        make(sparsity=0.99)
    with pytest.raises(ValueError, match="some outputs lose all their inputs"):
        make(sparsity=0.99, strict=True)
    alive = make(nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 5)), sparsity=0.99, min_nonzeros=3)
    assert min(mask.numel - mask.zeros for mask in alive.masks.values()) >= 3


def crowd(method):
    """A step in whose gradient the first outputs of each layer are far ahead: what grows, grows there."""
    for w in method.weights.values():
        w.grad = torch.arange(w.numel(), 0, -1.0).reshape(w.shape)
    method.optimizer.step()


LAYERS = {"sparsity": {"0": 0.5, "1": 0.95}, "alpha": 1.0, "delta_t": 5, "t_end": 0.5, "total_steps": 20}


def test_strict_looks_at_each_change_before_it():
    torch.manual_seed(0)
    method = make(nn.Sequential(nn.Linear(10, 6)), **(LAYERS | {"sparsity": 0.5}), strict=True)
    before = method.masks["0.weight"].to_dense(), method.weights["0.weight"].detach().clone()
    with pytest.raises(ValueError, match=r"RigL: some outputs lose all their inputs: 0.weight \(3 of 6 outputs\)"):
        crowd(method)
    assert torch.equal(method.masks["0.weight"].to_dense(), before[0])
    assert torch.equal(method.weights["0.weight"], before[1]) and method.sweep.steps == 0


def test_each_layer_is_warned_of_once_and_outputs_at_the_last_change():
    torch.manual_seed(0)
    with pytest.warns(methods.CollapseWarning, match="no weight survives in 1.weight") as seen:
        method = make(nn.Sequential(nn.Linear(10, 6), nn.Linear(6, 1)), **LAYERS)
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", methods.CollapseWarning)
        for _ in range(5):
            crowd(method)
    assert int(method.masks["0.weight"].to_dense().any(1).sum()) == 3
    with pytest.warns(methods.CollapseWarning, match=r"some outputs .*: 0.weight \(3 of 6 outputs\)") as seen:
        crowd(method)  # the last of the changes before step 10
    assert len(seen) == 1 and seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", methods.CollapseWarning)
        for _ in range(14):
            crowd(method)
