"""GMP: its cubic and its steps by hand, exact budgets at each of them, masks that only grow."""

import copy
import math
import warnings

import pytest
import torch
from small_networks import batches, cnn
from torch import nn

from sparse_ops import methods, optim
from sparse_ops.masks import budget
from sparse_ops.methods.budget import Budget
from sparse_ops.methods.schedules import cubic, half_cosine, phase_steps

pytestmark = pytest.mark.filterwarnings("ignore::sparse_ops.methods.CollapseWarning")


def start(net=None, cls=optim.SGD, **options):
    net = cnn() if net is None else net
    optimizer = cls(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    settings = {"sparsity": 0.9, "pretrain_epochs": 1, "prune_epochs": 3, "finetune_epochs": 1} | options
    settings = {"total_steps": 5 * sum(v for k, v in settings.items() if k.endswith("epochs"))} | settings
    return net, optimizer, methods.GMP(net, optimizer, **settings)


def steps(net, optimizer, count, number=0):
    for x, y in batches("cnn", count, number):
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        yield


def zeros(gmp):
    return sum(mask.zeros for mask in gmp.masks.values())


def test_the_cubic_by_hand():
    assert [cubic(0.0, 0.8, k / 4) for k in range(5)] == pytest.approx([0, 0.4625, 0.7, 0.7875, 0.8], abs=1e-12)
    assert cubic(0.0, 0.8, 1.0) == 0.8 and cubic(0.3, 0.9, 0.0) == 0.9 + (0.3 - 0.9)
    assert cubic(0.5, 0.9, 0.5) == pytest.approx(0.9 - 0.4 / 8)
    assert phase_steps("M", 100, [1, 3, 1]) == [20, 60, 20]
    assert phase_steps("M", 10, [1, 1, 1]) == [3, 3, 4]
    assert phase_steps("M", 7, [0, 0]) == [0, 0]


@pytest.mark.parametrize("scope", ["global", "uniform", "erk"])
@pytest.mark.parametrize("every, initial", [(1, 0.0), (4, 0.0), (4, 0.5), (15, 0.0)])
def test_each_pruning_is_exact_and_at_its_step(every, initial, scope):
    """5 steps an epoch: dense for 5, the phase "prune" takes 15, so n = 15 // every prunings follow the first."""
    net, optimizer, gmp = start(every=every, initial_sparsity=initial, scope=scope)
    n = 15 // every
    assert gmp.prunings == n
    before, step = {}, 0
    for epoch in range(5):
        for _ in steps(net, optimizer, 5, epoch):
            step += 1
            k = min(max(0, step - 5) // every, n)
            share = 0.9 + (initial - 0.9) * (1 - k / n) ** 3 if step > 5 else 0.0
            assert zeros(gmp) == budget(gmp.selection.numel, max(share, 0.0)), step
            for name, mask in gmp.masks.items():
                dead = ~mask.to_dense()
                weight = gmp.weights[name]
                assert not weight.detach()[dead].any() and not optimizer.state[weight]["momentum_buffer"][dead].any()
                if scope == "global" and name in before:
                    assert dead[before[name]].all()
                before[name] = dead
        gmp.end_epoch()
        if epoch == 0:
            assert zeros(gmp) == budget(gmp.selection.numel, initial)
    assert gmp.finished and zeros(gmp) == budget(gmp.selection.numel, 0.9)
    assert gmp.finalize() is net


def test_the_optimiser_keeps_its_state_and_the_rate_is_one_cosine():
    net, optimizer, gmp = start(every=5)
    rates, kept = [], None
    for epoch in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        for _ in steps(net, optimizer, 5, epoch):
            kept = {w: optimizer.state[w]["momentum_buffer"].clone() for w in gmp.weights.values()}
        gmp.end_epoch()
        for w, momentum in kept.items():
            assert torch.equal(optimizer.state[w]["momentum_buffer"], momentum)  # of the last step, and not cleared
    assert rates == pytest.approx([0.1 * half_cosine(e, 5) for e in range(5)])


def test_ties_with_live_zeros_do_not_revive_masked_weights():
    net = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(1 + torch.arange(100.0).view(10, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    gmp = methods.GMP(net, optimizer, 0.5, 0, 1, 0, total_steps=2, every=1, initial_sparsity=0.3)
    first = {name: ~mask.to_dense() for name, mask in gmp.masks.items()}
    assert sum(int(dead.sum()) for dead in first.values()) == 60
    with torch.no_grad():
        net[0].weight.masked_fill_(
            ~first["0.weight"], 0.0
        )  # live zeros, and before the masked ones of the second layer
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    second = {name: ~mask.to_dense() for name, mask in gmp.masks.items()}
    assert sum(int(dead.sum()) for dead in second.values()) == budget(200, 0.5 - 0.2 / 8)
    assert all(second[name][dead].all() for name, dead in first.items())


SHAPES = [(26, 30), (15, 3), (10, 18), (17, 14), (27, 28), (11, 17)]


@pytest.mark.parametrize("scope", ["uniform", "erk"])
def test_what_is_masked_stays_masked_though_a_layer_s_rounded_count_would_fall(scope):
    torch.manual_seed(0)
    net = nn.ModuleList([nn.Linear(i, o, bias=False) for o, i in SHAPES])
    settings = {"sparsity": 0.9, "pretrain_epochs": 0, "prune_epochs": 1, "finetune_epochs": 0, "total_steps": 400}
    optimizer = optim.SGD(net.parameters(), lr=0.0)
    gmp = methods.GMP(net, optimizer, **settings, every=1, scope=scope)
    dead, fell = {}, 0
    counts = [0] * len(SHAPES)
    for step in range(1, 401):
        for w in net.parameters():
            w.grad = torch.zeros_like(w)
        optimizer.step()
        for name, mask in gmp.masks.items():
            now = ~mask.to_dense()
            assert name not in dead or now[dead[name]].all(), (step, name)
            dead[name] = now
        share = gmp.sparsity_after(step)
        alone = Budget(share, scope)
        assert zeros(gmp) == alone.zeros(gmp.weights)
        free = [mask.zeros for mask in alone.masks(gmp.weights).values()]
        fell += any(f < c for f, c in zip(free, counts, strict=True))
        counts = [mask.zeros for mask in gmp.masks.values()]
        assert max(abs(f - c) for f, c in zip(free, counts, strict=True)) <= 2
    assert fell > 0


def test_layers_by_name_follow_the_curve_each_to_its_own_target():
    _, _, gmp = start(sparsity={"0": 0.0, "5": 0.4, "*": 0.8}, every=5, initial_sparsity=0.5)
    assert gmp.sparsity_after(0) == {"0": 0.0, "5": 0.4, "*": pytest.approx(0.5)}
    assert gmp.sparsity_after(gmp.prunings) == {"0": 0.0, "5": 0.4, "*": 0.8}
    assert gmp.sparsity_after(1)["*"] == pytest.approx(0.8 - 0.3 * (2 / 3) ** 3)


def test_a_run_of_fewer_or_more_steps_than_said_still_reaches_the_target():
    for count in (2, 9):
        net, optimizer, gmp = start(every=5)
        for epoch in range(5):
            for _ in steps(net, optimizer, count, epoch):
                pass
            gmp.end_epoch()
        assert zeros(gmp) == budget(gmp.selection.numel, 0.9)


def test_phases_without_length_and_pruning_at_once():
    _, _, gmp = start(pretrain_epochs=0, prune_epochs=0, finetune_epochs=2)
    assert gmp.phase == "finetune" and zeros(gmp) == budget(gmp.selection.numel, 0.9)
    _, _, gmp = start(pretrain_epochs=0, initial_sparsity=0.4)
    assert gmp.phase == "prune" and zeros(gmp) == budget(gmp.selection.numel, 0.4)
    _, _, gmp = start(total_steps=10**6)
    assert (gmp.every, gmp.prunings) == (6000, 100)
    _, _, gmp = start(total_steps=25)
    assert (gmp.every, gmp.prunings) == (1, 15)
    assert all(sum(methods.GMP.for_epochs(e).values()) == e for e in range(40))
    assert methods.GMP.for_epochs(100) == {"pretrain_epochs": 20, "prune_epochs": 60, "finetune_epochs": 20}


def test_a_layer_that_dies_on_the_way_is_warned_of_once():
    net, optimizer, gmp = start(every=1, pretrain_epochs=0, net=cnn())
    with torch.no_grad():
        net[7].weight.mul_(1e-9)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", methods.CollapseWarning)
        for epoch in range(4):
            for _ in steps(net, torch.optim.SGD(net.parameters(), lr=0.0), 0, epoch):
                pass
            for p in net.parameters():
                p.grad = torch.zeros_like(p)
            optimizer.param_groups[0].update(lr=0.0)
            for _ in range(5):
                optimizer.step()
            gmp.end_epoch()
    texts = [str(w.message) for w in seen if issubclass(w.category, methods.CollapseWarning)]
    assert sum("no weight survives in 7.weight" in text for text in texts) == 1
    assert sum("some outputs lose all" in text for text in texts) <= 1
    assert all(w.filename == __file__ for w in seen)


def test_outputs_without_inputs_are_warned_of_at_the_last_pruning():
    net = cnn()
    with torch.no_grad():
        net[5].weight[3].mul_(1e-9)
    net, optimizer, gmp = start(net, every=5, pretrain_epochs=0)
    optimizer.param_groups[0].update(lr=0.0)

    def five_steps():
        for _ in range(5):
            for p in net.parameters():
                p.grad = torch.zeros_like(p)
            optimizer.step()

    with warnings.catch_warnings():
        warnings.simplefilter("error", methods.CollapseWarning)
        five_steps()
        five_steps()
    assert not gmp.masks["5.weight"].to_dense()[3].any()
    with pytest.warns(methods.CollapseWarning, match=r"some outputs lose all their inputs: .*5.weight \("):
        five_steps()


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"every": 16}, ValueError, r"every is 16, but of the 25 steps the 3 prune_epochs have 15"),
        ({"every": -1}, ValueError, "every is -1"),
        ({"initial_sparsity": 0.95}, ValueError, r"initial_sparsity is 0.95, expected a number from 0 to .* 0.9"),
        ({"initial_sparsity": -0.1}, ValueError, r"initial_sparsity is -0.1"),
        ({"initial_sparsity": "a"}, ValueError, r"initial_sparsity is 'a'"),
        ({"total_steps": 4}, ValueError, "total_steps is 4, less than one in each of the 5 epochs"),
        ({"total_steps": 1e3}, TypeError, r"total_steps is 1000.0, expected an integer"),
        ({"prune_epochs": 1.5}, TypeError, r"prune_epochs is 1.5"),
    ],
)
def test_what_it_refuses(options, error, message):
    if "prune_epochs" in options:
        options["total_steps"] = 25
    with pytest.raises(error, match=message):
        start(**options)


def test_a_checkpoint_of_another_schedule():
    _, _, a = start(every=5)
    _, _, b = start(every=3)
    with pytest.raises(ValueError, match="GMP: the checkpoint has every 5, here it is 3"):
        b.load_state_dict(copy.deepcopy(a.state_dict()))
    assert math.isclose(a.sparsity_after(3), 0.9)
