"""Sweep: exact coefficients whatever happens to the weights, resuming, and what is refused."""

import copy
import warnings

import pytest
import torch
from small_networks import cnn, gradients
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_ops import optim, prunable
from sparse_ops.masks import PackedMask, magnitude_mask
from sparse_ops.optim import Sweep, attach


def swept(lr=0.05, **options):
    net = cnn()
    optimizer = optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    sweep = Sweep(prunable.select(net).parameters, check=True, **options)
    attach(optimizer, sweep)
    sweep.set_penalty("hypersparse", 1e-2)
    sweep.track(0.9)
    return net, optimizer, sweep


def step(net, optimizer, number):
    gradients(net, number)
    optimizer.step()


def exactly(sweep, kappa=0.9):
    """(threshold, scale, ratio) by the literal formula in float64."""
    u = torch.cat([w.detach().double().abs().flatten() for w in sweep.weights.values()]).sort().values
    a_k = u[int(kappa * u.numel())].item()
    s = 0.6585 / a_k
    return a_k, s, (u.sum() / torch.tanh(s * u).sum()).item()


def test_the_coefficients_of_each_step():
    net, optimizer, sweep = swept(lr=0.002)
    for number in range(20):
        step(net, optimizer, number)
        values = sweep.metrics()
        assert (values["threshold"], values["scale"], values["ratio"]) == pytest.approx(exactly(sweep), rel=1e-6)
    assert values["hit_rate"] > 0.5
    assert values["candidates"] > 0 and abs(values["ds_over_s"]) < 0.2
    assert values["exact_passes"] < 10


@pytest.mark.parametrize("cls", [optim.SGD, optim.AdamW])
def test_torch_compile_around_the_step(cls):
    ends = []
    for compiled in (False, True):
        net = cnn()
        optimizer = cls(net.parameters(), lr=0.01)
        sweep = Sweep(prunable.select(net).parameters, check=True)
        attach(optimizer, sweep)
        sweep.set_penalty("hypersparse", 1e-2)
        sweep.track(0.9)

        def train(x, net=net, optimizer=optimizer):
            net(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        if compiled:
            torch._dynamo.reset()
            train = torch.compile(train, backend="aot_eager")
        for i in range(3):
            train(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(i)))
        ends.append([*(p.detach().clone() for p in net.parameters()), sweep.report.clone()])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_extra_memory_is_a_bit_a_weight_and_one_per_cent():
    n = 2**20
    w = torch.nn.Parameter(torch.randn(1024, 1024))
    optimizer = optim.SGD([w], lr=0.01, momentum=0.9)
    sweep = Sweep({"w": w})
    attach(optimizer, sweep)
    sweep.set_penalty("hypersparse", 1e-2)
    sweep.track(0.98)
    sweep.set_masks({"w": magnitude_mask([w], 0.5)[0]})
    w.grad = torch.randn_like(w)
    optimizer.step()
    held = {id(t): t.nbytes for t in vars(sweep).values() if isinstance(t, torch.Tensor)}
    held |= {id(mask.bits): mask.bits.nbytes for mask in sweep.masks.values()}
    assert n / 8 < sum(held.values()) <= n / 8 + 0.01 * 12 * n
    assert set(optimizer.state[w]) == {"momentum_buffer"}


def test_many_scopes_share_the_room_for_candidates():
    shapes = [(16, 16, 3, 3)] * 7 + [(32, 32, 3, 3)] * 6 + [(64, 64, 3, 3)] * 6 + [(10, 64)]
    params = {f"{i}": torch.nn.Parameter(torch.randn(s)) for i, s in enumerate(shapes)}
    sweep = Sweep(params, list(range(len(shapes))))
    n = sum(w.numel() for w in params.values())
    held = sum(t.nbytes for t in vars(sweep).values() if isinstance(t, torch.Tensor))
    assert held <= n / 8 + 0.01 * 12 * n
    optimizer = optim.SGD(params.values(), lr=1e-3)
    attach(optimizer, sweep)
    sweep.set_penalty("hypersparse", 1e-4)
    sweep.track(0.9)
    for seed in range(30):
        rng = torch.Generator().manual_seed(seed)
        for w in params.values():
            w.grad = torch.randn(w.shape, generator=rng)
        optimizer.step()
    assert sweep.metrics()["hit_rate"] > 0.8


def test_the_exact_pass_comes_when_it_is_due():
    net, optimizer, sweep = swept(lr=1e-4, exact_every=5)
    step(net, optimizer, 0)
    passes = []
    for number in range(1, 11):
        before = sweep.metrics()["exact_passes"]
        step(net, optimizer, number)
        passes.append(sweep.metrics()["exact_passes"] - before)
    assert passes[3] == passes[8] == 1 and passes[5:8] == [0, 0, 0]


def test_operands_of_other_parameters_are_their_own():
    """The cache goes by the parameters' ids, which a copy's may take over."""
    first, second = (torch.nn.Parameter(torch.randn(64)) for _ in range(2))
    sweep = Sweep({"a": first, "b": second}, [0, 1])
    assert sweep.operands([first])[0] == [0]
    sweep._operands[id(second),] = sweep._operands.pop((id(first),))  # as if second lay where first was
    assert sweep.operands([second])[0] == [1]


def test_a_change_from_outside_is_seen():
    net, optimizer, sweep = swept()
    step(net, optimizer, 0)
    with torch.no_grad():
        net[5].weight.mul_(3)
    before = {name: w.detach().clone() for name, w in sweep.weights.items()}
    _, s, ratio = exactly(sweep)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.param_groups[0].update(momentum=0.0)
    optimizer.step()
    for name, w in sweep.weights.items():
        old = before[name].double()
        penalty = 1e-2 * s * old.sign() / torch.cosh(s * old.abs()) ** 2 * ratio
        torch.testing.assert_close(w.double(), old - 0.05 * penalty, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("model_first", [True, False])
def test_resume_is_bit_for_bit(model_first):
    net, optimizer, sweep = swept()
    masks = magnitude_mask(list(sweep.weights.values()), 0.3)
    sweep.set_masks(dict(zip(sweep.weights, masks, strict=True)))
    for number in range(4):
        step(net, optimizer, number)
    states = copy.deepcopy((net.state_dict(), optimizer.state_dict(), sweep.state_dict()))
    other, other_optimizer, other_sweep = swept()
    step(other, other_optimizer, 77)
    loads = [lambda: other.load_state_dict(states[0]), lambda: other_sweep.load_state_dict(states[2])]
    for load in loads if model_first else reversed(loads):
        load()
    other_optimizer.load_state_dict(states[1])
    for number in range(4, 9):
        step(net, optimizer, number), step(other, other_optimizer, number)
    for a, b in ((net, other), (optimizer, other_optimizer)):
        torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=0)
    assert sweep.metrics() == other_sweep.metrics()
    assert torch.equal(sweep.coefficients, other_sweep.coefficients)


def test_refusals_on_loading():
    _, _, sweep = swept()
    state = sweep.state_dict()
    layer = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"prunable weights differ from the model's: 0.weight"):
        Sweep({"weight": layer.weight}).load_state_dict(state)
    with pytest.raises(ValueError, match="has 1 scopes, this sweep 3"):
        Sweep(sweep.weights, [0, 1, 2]).load_state_dict(state)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("penalty", ["none", "hypersparse"])
def test_a_non_finite_weight_is_named_in_its_step(bad, penalty):
    net, optimizer, sweep = swept()
    sweep.set_penalty(penalty, 1e-3)
    if penalty == "none":
        sweep.track(None)
    sweep.check = False
    step(net, optimizer, 0)
    gradients(net, 1)
    net[5].weight.grad[2, 3] = bad
    with pytest.raises(ValueError, match=r"5.weight holds 1 non-finite values \((nan|-inf)\) after step 2"):
        optimizer.step()


def test_no_threshold_is_no_penalty_and_one_warning():
    net, optimizer, sweep = swept()
    with torch.no_grad():
        for w in sweep.weights.values():
            w.mul_(torch.rand(w.shape, generator=torch.Generator().manual_seed(0)) < 0.03)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    before = [p.clone() for p in net.parameters()]
    with pytest.warns(UserWarning, match="smallest magnitude of 3 weights is 0"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    torch.testing.assert_close([*net.parameters()], before, rtol=0, atol=0)


@pytest.mark.parametrize("make", [optim.SGD, torch.optim.SGD])
def test_weights_too_small_for_a_scale_are_no_penalty_and_one_warning_of_their_own(make):
    """A threshold of 1.1e-39 wants a scale of 5.8e38, which float32 does not hold."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        layer.weight.mul_(1e-38)
    before = layer.weight.detach().clone()
    optimizer = make(layer.parameters(), lr=1.0)
    sweep = Sweep({"weight": layer.weight}, check=True)
    attach(optimizer, sweep)
    sweep.set_penalty("hypersparse", 1.0)
    sweep.track(0.9)
    layer.weight.grad = torch.zeros_like(layer.weight)
    with pytest.warns(UserWarning, match=r"magnitude of weight is 1.13e-39, so small that the scale") as caught:
        optimizer.step()
        optimizer.step()
    assert len(caught) == 1
    assert torch.equal(layer.weight, before) and sweep.metrics()["scale"] == 0


def test_a_scope_that_is_no_longer_tracked_costs_no_statistics_but_the_sum():
    net, optimizer, sweep = swept(scopes=[0, 1, 0])
    step(net, optimizer, 0)
    assert (sweep.coefficients[:, 2:] > 0).all() and (sweep.brackets[:, 1] > 0).all()
    sweep.track([0.9, 0.0])
    assert (sweep.coefficients[0, 2:] > 0).all() and (sweep.brackets[0, 1] > 0).all()
    sweep.set_penalty("none")
    sweep.track(None)
    assert (sweep.coefficients == 0).all() and (sweep.brackets == 0).all()
    finish, statistics = sweep._finish, []
    sweep._finish = lambda exact: (statistics.append(sweep.statistics.clone()), finish(exact))
    step(net, optimizer, 1)
    assert sweep.metrics() == {"strength": 0.0}
    N, tanh, _, curvature, _, candidates, swept_weights = statistics[0].unbind(1)
    assert (N > 0).all() and swept_weights.tolist() == sweep.numel
    assert (tanh == 0).all() and (curvature == 0).all() and (candidates == 0).all()
    sweep.track(0.9)
    step(net, optimizer, 2)
    values = sweep.metrics()
    for r in range(2):
        mine = [w.detach().double().abs().flatten() for name, w in sweep.weights.items() if sweep.scopes[name] == r]
        u = torch.cat(mine).sort().values
        threshold = u[int(0.9 * u.numel())].item()
        s = 0.6585 / threshold
        exact = threshold, s, (u.sum() / torch.tanh(s * u).sum()).item()
        assert [values[f"{key}/{r}"] for key in ("threshold", "scale", "ratio")] == pytest.approx(exact, rel=1e-6)


def test_an_edit_through_data_wants_a_refresh():
    net, optimizer, sweep = swept()
    sweep.check = False
    step(net, optimizer, 0)
    net[5].weight.data.mul_(3)
    assert sweep.metrics()["threshold"] != exactly(sweep)[0]
    sweep.begin()  # as a step begins: nothing shows that the weight has changed
    assert sweep.metrics()["threshold"] != exactly(sweep)[0]
    sweep.refresh()
    values = sweep.metrics()
    assert (values["threshold"], values["scale"], values["ratio"]) == pytest.approx(exactly(sweep), rel=1e-6)


def test_masks_follow_the_memory_format():
    net, optimizer, sweep = swept()
    masks = dict(zip(sweep.weights, magnitude_mask(list(sweep.weights.values()), 0.5), strict=True))
    sweep.set_masks(masks)
    step(net, optimizer, 0)
    net.to(memory_format=torch.contiguous_format)
    step(net, optimizer, 1)
    for name, w in sweep.weights.items():
        assert torch.equal(w == 0, ~masks[name].to_dense())
        assert torch.equal(optimizer.state[w]["momentum_buffer"] == 0, ~masks[name].to_dense())


def test_check_finds_a_wrong_coefficient_and_a_stray_weight():
    net, optimizer, sweep = swept(tolerance=0.5, exact_every=0)
    step(net, optimizer, 0)
    sweep.exact_every, finish = 0, sweep._finish

    def wrong(exact):
        finish(exact)
        sweep.coefficients[0, 3] *= 1.2

    sweep._finish = wrong
    with pytest.raises(AssertionError, match="the ratio is"):
        step(net, optimizer, 1)
    sweep._finish = finish
    full = torch.ones(4, 24, dtype=torch.bool)
    full[0, 0] = False
    sweep.set_masks({"7.weight": PackedMask.from_dense(full)})
    sweep.observe = lambda without=(): net[7].weight.data.fill_(1.0)
    with pytest.raises(AssertionError, match=r"7\.weight: 1 pruned weights are not zero"):
        step(net, optimizer, 2)


def test_strengths_are_filled_where_they_change_and_nothing_is_copied_from_the_host():
    """What waits for a device: a penalty that grows in training writes its new strength by fills alone."""

    class Ops(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    weights = {name: torch.nn.Parameter(torch.ones(4)) for name in "abc"}
    sweep = Sweep(weights, [0, 1, 2])
    for strengths, kept, filled in (
        ([0.1, 0.0, 0.1], -0.5, None),  # the rows' numbers go to the device once
        ([0.2, 0.0, 0.2], -0.5, 1),
        ([0.2, 0.0, 0.2], -0.5, 0),
        (0.3, [-0.5, -0.5, -0.25], 1),
        ([0.5, 0.6, 0.7], 0.0, None),
        ([0.6, 0.5, 0.7], 0.0, 2),
    ):
        seen = []
        if filled is None:
            sweep.set_penalty("growing_l2", strengths, kept)
        else:
            with Ops():
                sweep.set_penalty("growing_l2", strengths, kept)
            assert set(seen) <= {"slice", "select", "fill_", "index_fill_", "lift_fresh", "detach"}
            assert sum("fill_" in name for name in seen) <= filled + 1
        wanted = [[given] * 3 if isinstance(given, float) else given for given in (strengths, kept)]
        assert sweep.coefficients[:, :2].t().tolist() == wanted
    fresh = Sweep(weights, [0, 1, 2])
    fresh.load_state_dict(sweep.state_dict())
    fresh.set_penalty("l1", 0.0)
    assert not fresh.coefficients.any()


def test_what_is_refused():
    _, _, sweep = swept()
    with pytest.raises(ValueError, match="penalty is 'l3'"):
        sweep.set_penalty("l3", 1.0)
    with pytest.raises(ValueError, match="strength of l1 is nan"):
        sweep.set_penalty("l1", float("nan"))
    with pytest.raises(ValueError, match=r"tracked sparsities are \[1.0\]"):
        sweep.track(1.0)
    mask = PackedMask.from_dense(torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"the mask of 5.weight is \(3,\), the weight \(24, 72\)"):
        sweep.set_masks({"5.weight": mask})
    with pytest.raises(ValueError, match="a mask for conv, which is not a prunable weight"):
        sweep.set_masks({"conv": mask})
    with pytest.raises(ValueError, match="no weights to watch"):
        Sweep({})
