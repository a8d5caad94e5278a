"""ART: its schedule, its choice of the best network and its stop rule by hand, its penalty by the literal formula."""

import copy
import math

import pytest
import torch
from small_networks import batches, cnn
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_ops import methods, optim
from sparse_ops.masks import magnitude_mask
from sparse_ops.methods.best_of import BestOf
from sparse_ops.methods.schedules import growing, steps_at_half_and_three_quarters
from sparse_ops.optim.snapshot import Snapshot, pruned

pytestmark = pytest.mark.filterwarnings("ignore::sparse_ops.methods.CollapseWarning")


def start(net=None, cls=optim.SGD, **options):
    net = cnn() if net is None else net
    optimizer = cls(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    settings = {"sparsity": 0.8, "pretrain_epochs": 1, "max_regularize_epochs": 4, "finetune_epochs": 4} | options
    return net, optimizer, methods.ART(net, optimizer, **settings)


def epoch(net, optimizer, number=0, count=3):
    for x, y in batches("cnn", count, number):
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def snapshot(tag):
    return Snapshot({}, {}, {"tag": torch.tensor(tag)})


def test_schedules_by_hand():
    assert growing(5e-6, 1.05, 0) == 5e-6
    assert growing(5e-6, 1.05, 10) == pytest.approx(8.144473134e-06, rel=1e-9)
    factors = [steps_at_half_and_three_quarters(e, 160) for e in range(160)]
    assert factors == pytest.approx([1.0] * 80 + [0.1] * 40 + [0.01] * 40)
    assert [steps_at_half_and_three_quarters(e, 5) for e in range(5)] == pytest.approx([1, 1, 1, 0.1, 0.01])
    assert steps_at_half_and_three_quarters(0, 1) == 1


def test_the_best_network_by_hand():
    """Accuracies .5 .7 .6 .8 .3 .9: the FIFO fills with the third, whose means are worked out beside each line."""
    best = BestOf(1)
    steps = [  # accuracy, best network afterwards, its own accuracy, the mean it was taken with
        (0.5, 0, 0.5, 0.5),  # mean .5 > -inf: the last one
        (0.7, 1, 0.7, 0.6),  # mean .6 > .5: the last one, since the FIFO is not full
        (0.6, 1, 0.7, 0.6),  # mean .6 is not above .7, the best network's own accuracy
        (0.8, 1, 0.7, 0.6),  # mean .7 is not above .7, though above the best mean of .6: the authors' quirk
        (0.3, 1, 0.7, 0.6),
        (0.9, 1, 0.7, 0.6),  # mean .6667
        (0.95, 5, 0.9, (0.3 + 0.9 + 0.95) / 3),  # mean .7167 > .7: the middle one
    ]
    for i, (accuracy, chosen, own, mean) in enumerate(steps):
        best.add(snapshot(i), accuracy)
        assert best.snapshot.others["tag"].item() == chosen
        assert (best.accuracy, best.mean) == pytest.approx((own, mean))
        again = BestOf(1)
        again.load_state_dict(copy.deepcopy(best.state_dict()), torch.device("cpu"))
        assert again.snapshot.others["tag"].item() == chosen
        assert [a for _, a in again._window] == [a for a, *_ in steps[max(0, i - 2) : i + 1]]
        assert (again.accuracy, again.mean) == (best.accuracy, best.mean)


def test_the_stop_rule_and_the_phases():
    net, optimizer, art = start(lambda_init=1e-3, eta=2.0)
    assert art.phase == "pretrain" and art.metrics().get("lambda") is None
    epoch(net, optimizer)
    change = art.end_epoch()
    assert (change.before, change.after, change.epoch) == ("pretrain", "regularize", 1)
    accuracies = iter([0.5, 0.7, 0.6])
    seen = []
    for number, train_accuracy in enumerate([0.9, 0.65, 0.59]):
        assert art.phase == "regularize"
        epoch(net, optimizer, number)
        assert art.metrics()["lambda"] == pytest.approx(1e-3 * 2**number)
        seen.append({name: w.detach().clone() for name, w in art.weights.items()})
        change = art.end_epoch(lambda model: next(accuracies), train_accuracy)
    # best means .5, .6, .6: the last is above .59. The best network is the second: that epoch's weights, pruned.
    assert change.after == "finetune" and "0.6000 exceeds the dense one's 0.5900" in change.reason
    masks = dict(zip(seen[1], magnitude_mask(list(seen[1].values()), 0.8), strict=True))
    for name, weight in art.weights.items():
        assert torch.equal(weight, torch.where(masks[name].to_dense(), seen[1][name], 0.0))
        assert torch.equal(art.masks[name].bits, masks[name].bits)
    assert len(optimizer.state) == 0
    rates = []
    while not art.finished:
        rates.append(optimizer.param_groups[0]["lr"])
        epoch(net, optimizer)
        assert not {"lambda", "threshold", "candidates"} & art.metrics().keys()  # a fixed mask wants no threshold
        change = art.end_epoch()
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001]) and change.after == "finished"
    assert art.finalize() is net
    assert sum(int((w == 0).sum()) for w in art.weights.values()) == math.floor(0.8 * art.selection.numel + 0.5)


def test_the_cap_and_a_trained_model():
    net, optimizer, art = start(pretrain_epochs=0, max_regularize_epochs=2, finetune_epochs=0)
    assert art.phase == "regularize"
    for number in range(2):
        epoch(net, optimizer, number)
        change = art.end_epoch(lambda model: 0.1, 0.9)
    assert (change.before, change.after) == ("regularize", "finished") and "its 2 epochs are over" in change.reason
    assert sum(m.zeros for m in art.masks.values()) == math.floor(0.8 * art.selection.numel + 0.5)


@pytest.mark.parametrize("cls", [optim.SGD, torch.optim.SGD])
@pytest.mark.parametrize("regularizer", ["hypersparse", "l1", "l2"])
def test_the_penalty_of_a_live_run_is_the_literal_loss(regularizer, cls):
    """Each step against plain SGD on CE + lambda L, L written as the paper's formula and differentiated by autograd."""
    options = {"regularizer": regularizer, "lambda_init": 3e-3, "pretrain_epochs": 0}
    net, optimizer, art = start(cls=cls, **options)
    twin = copy.deepcopy(net)
    plain = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for x, y in batches("cnn", 6):
        for model, step in ((net, optimizer), (twin, plain)):
            loss = nn.functional.cross_entropy(model(x), y)
            if model is twin:
                weights = [dict(twin.named_parameters())[name] for name in art.weights]
                w = torch.cat([p.double().flatten() for p in weights])
                if regularizer == "hypersparse":
                    a = w.detach().abs().sort().values
                    t = torch.tanh(0.6585 / a[math.floor(0.8 * a.numel())] * w.abs())
                    penalty = w.abs().sum() * t.sum() / t.detach().sum() - w.abs().sum()
                else:
                    penalty = w.abs().sum() if regularizer == "l1" else w.square().sum()
                loss = loss + 3e-3 * penalty
            step.zero_grad()
            loss.backward()
            step.step()
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            assert (p - q).norm() <= 1e-5 * q.norm()
        twin.load_state_dict(net.state_dict())
        plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def test_an_evaluation_changes_nothing_and_sees_the_pruned_network():
    net, optimizer, art = start(pretrain_epochs=0)
    epoch(net, optimizer)
    net[2].eval()
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    x, _ = next(batches("cnn", 1))
    zeros = []

    def evaluate(model):
        assert model is net and not any(m.training for m in model.modules())
        zeros.append(sum(int((w == 0).sum()) for w in art.weights.values()))
        model.train()
        model(x)  # moves the running statistics
        return 0.5

    art.end_epoch(evaluate, 0.9)
    assert zeros == [math.floor(0.8 * art.selection.numel + 0.5)]
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert [m.training for m in net.modules()] == modes

    def fails(model):
        raise KeyError("no data")

    with pytest.raises(KeyError):
        art.end_epoch(fails, 0.9)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert art.epoch == 1


def test_a_snapshot_holds_survivors_only():
    net = cnn()
    weights = methods.OneShot(net, torch.optim.SGD(net.parameters(), lr=0.1), 0.9, 0, 1).weights
    masks = dict(zip(weights, magnitude_mask(list(weights.values()), 0.9), strict=True))
    taken = Snapshot.take(net, weights, masks)
    kept = sum(t.numel() for t in taken.survivors.values())
    assert kept == sum(w.numel() for w in weights.values()) - sum(m.zeros for m in masks.values())
    with pruned(net, weights, masks):
        expected = copy.deepcopy(net.state_dict())
    for p in net.parameters():
        nn.init.normal_(p)
    Snapshot.from_state(copy.deepcopy(taken.state_dict()), torch.device("cpu")).restore(net, weights)
    torch.testing.assert_close(net.state_dict(), expected, rtol=0, atol=0)


class Copies(TorchDispatchMode):
    """Counts the bytes of floating point tensors that are made as copies of others."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = func.overloadpacket in (torch.ops.aten.clone, torch.ops.aten._to_copy, torch.ops.aten.index)
        if made and out.is_floating_point():
            self.bytes += out.nbytes
        return out


def test_an_evaluation_copies_the_model_once():
    net, optimizer, art = start(pretrain_epochs=0)
    epoch(net, optimizer)
    tensors = {id(t): t for t in (*net.parameters(), *net.buffers()) if t.is_floating_point()}
    survivors = 4 * (art.selection.numel - math.floor(0.8 * art.selection.numel + 0.5))
    with Copies() as copies:
        art.end_epoch(lambda model: 0.5, 0.9)
    assert copies.bytes == sum(t.nbytes for t in tensors.values()) + survivors
    kept, _ = art.best._window[0]
    held = sum(t.nbytes for t in (*kept.survivors.values(), *kept.others.values()) if t.is_floating_point())
    assert held == copies.bytes - 4 * art.selection.numel
    x, _ = next(batches("cnn", 1))
    net(x), net[1].bias.data.fill_(7.0)  # what is kept is no part of the live model
    kept.restore(net, art.weights)
    assert (net[1].bias != 7.0).all()


def test_an_edit_through_data_wants_a_refresh():
    net, optimizer, art = start(pretrain_epochs=0)
    epoch(net, optimizer)
    net[5].weight.data.mul_(2.0)
    art.refresh()
    u = torch.cat([w.detach().double().abs().flatten() for w in art.weights.values()]).sort().values
    threshold = u[math.floor(0.8 * u.numel())].item()
    s = 0.6585 / threshold
    exact = threshold, s, (u.sum() / torch.tanh(s * u).sum()).item()
    values = art.metrics()
    assert [values[key] for key in ("threshold", "scale", "ratio")] == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("returned, shown", [(98.5, "98.5"), (float("nan"), "nan"), (-0.1, "-0.1")])
def test_what_evaluate_returns(returned, shown):
    _, _, art = start(pretrain_epochs=0)
    with pytest.raises(ValueError, match=f"the accuracy that evaluate returned is {shown}, expected"):
        art.end_epoch(lambda model: returned, 0.5)
    with pytest.raises(ValueError, match="end_epoch needs evaluate"):
        art.end_epoch(train_accuracy=0.5)
    with pytest.raises(ValueError, match=r"train_accuracy is 55.0.*divide by 100"):
        art.end_epoch(lambda model: 0.5, 55.0)
    assert art.epoch == 0 and art.phase == "regularize"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"regularizer": "l3"}, "regularizer is 'l3'"),
        ({"eta": 0.0}, "eta is 0.0"),
        ({"eta": 0.5}, "eta is 0.5, expected a number >= 1"),
        ({"lambda_init": float("inf")}, "lambda_init is inf"),
        ({"pretrain_epochs": -1}, "pretrain_epochs is -1"),
        ({"max_regularize_epochs": -2}, "max_regularize_epochs is -2"),
        ({"half_window": -1}, "half_window is -1"),
    ],
)
def test_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        start(**options)
    with pytest.raises(TypeError, match=r"finetune_epochs is 1\.5"):
        start(finetune_epochs=1.5)


def test_the_authors_count():
    net, _, art = start(pretrain_epochs=0, max_regularize_epochs=0, finetune_epochs=0, count="art")
    assert sum(m.zeros for m in art.masks.values()) == math.floor(0.8 * art.selection.numel) + 1
    assert art.finalize() is net


@pytest.mark.parametrize("regularizer", ["hypersparse", "l1", "l2"])
def test_a_layer_that_stays_dense_feels_no_penalty(regularizer):
    options = {"regularizer": regularizer, "lambda_init": 0.1, "pretrain_epochs": 0}
    net, optimizer, _ = start(sparsity={"0": 0.5, "5": 0.0, "*": 0.9}, **options)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    before = [net[i].weight.clone() for i in (0, 5, 7)]
    optimizer.step()
    assert [torch.equal(net[i].weight, w) for i, w in zip((0, 5, 7), before, strict=True)] == [False, True, False]


def test_fine_tuning_takes_what_is_left_of_the_whole_run():
    net = torch.nn.Linear(8, 8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    art = methods.ART(net, optimizer, sparsity=0.5, **methods.ART.for_epochs(20))
    assert (art.total_epochs, art.phases) == (20, ("pretrain", "regularize", "finetune"))
    rates = []
    while not art.finished:
        rates.append((art.phase, art.phase_epochs, round(art.lr_factor, 4)))
        art.end_epoch(lambda model: 0.9, train_accuracy=0.8)  # the penalty's phase ends after its first epoch
    assert len(rates) == 20 and rates[3] == ("regularize", 13, 1) and rates[4] == ("finetune", 16, 1)
    assert [factor for *_, factor in rates[4:]] == [1] * 8 + [0.1] * 4 + [0.01] * 4
    with pytest.raises(ValueError, match=r"ART: total_epochs is 100, less than the 60 \+ 100"):
        methods.ART(net, torch.optim.SGD(net.parameters()), sparsity=0.5, total_epochs=100)
