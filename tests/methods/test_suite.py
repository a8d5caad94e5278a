"""One suite for every method of the registry, with every kind of optimiser, on a CNN and on a transformer."""

import copy
import math
import re

import method_runs
import pytest
import torch
from method_runs import AT_ONCE, OPTIMIZERS, SHORT, Run, check_zeros, make, same
from small_networks import NETWORKS, batches
from torch import nn

from sparse_ops import methods
from sparse_ops.prunable import plain

pytestmark = [
    pytest.mark.filterwarnings("ignore::sparse_ops.methods.CollapseWarning"),
    pytest.mark.filterwarnings("ignore:.* were wanted; the controller ended:UserWarning"),  # in so few steps
]


@pytest.fixture(params=methods.names())
def info(request):
    return methods.get(request.param)


@pytest.fixture(params=OPTIMIZERS)
def make_optimizer(request):
    return OPTIMIZERS[request.param]


@pytest.mark.parametrize("kind", NETWORKS)
def test_sparsity_is_exact_and_zeros_stay_zero(info, make_optimizer, kind):
    run = Run(info, make_optimizer, kind, check=True)
    assert (run.method.masks == {}) == (run.method.metrics()["sparsity"] == 0) == info.starts_dense
    while not run.method.finished:
        run.epoch()
        check_zeros(run, info)
    model = run.method.finalize()
    assert model is run.net
    check_zeros(run, info)
    zeros = run.zeros()
    with pytest.raises(ValueError, match="all phases are over"):
        run.method.end_epoch()
    run.step(*next(batches(kind, 1)))  # the hooks are gone: pruned weights may move again
    assert sum(z.sum() for z in run.zeros().values()) < sum(z.sum() for z in zeros.values())
    again = make(info, run.net, run.optimizer, sparsity=0.5, **SHORT[info.name])
    assert again.phase == again.phases[0]


@pytest.mark.parametrize("pair", [("ours sgd", "torch sgd"), ("ours adamw", "torch adamw")])
@pytest.mark.parametrize("kind", NETWORKS)
def test_fused_equals_hooked(info, pair, kind):
    """Per step, from equal states: rounding is amplified from step to step by training itself."""
    a, b = (Run(info, OPTIMIZERS[name], kind) for name in pair)

    def step(x, y):
        for part in ("net", "optimizer", "method"):
            getattr(b, part).load_state_dict(copy.deepcopy(getattr(a, part).state_dict()))
        a.step(x, y), b.step(x, y)
        same(a, b, 1e-6)

    while not a.method.finished:
        a.epoch(step)
    assert sum(mask.zeros for mask in b.method.masks.values()) == sum(mask.zeros for mask in a.method.masks.values())


@pytest.mark.parametrize("order", ["model first", "sparsifier first"])
def test_resume_in_mid_phase_is_bit_for_bit(info, make_optimizer, order, tmp_path):
    phases = Run(info, make_optimizer).method.phases
    last = {phase: index for index, phase in enumerate(phases)}
    for index in sorted({phases.index(phase) for phase in last} | set(last.values())):
        whole = Run(info, make_optimizer).until_phase(index)
        if whole.method.phase_epochs > 1:
            whole.epoch()
        x, y = next(batches("cnn", 1, 99))
        whole.step(x, y)
        state = {"net": whole.net.state_dict(), "optimizer": whole.optimizer.state_dict()}
        torch.save(state | {"method": whole.method.state_dict()}, tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        resumed = Run(info, make_optimizer)
        resumed.epoch()
        parts = [(resumed.net, "net"), (resumed.optimizer, "optimizer"), (resumed.method, "method")]
        for part, key in parts if order == "model first" else reversed(parts):
            part.load_state_dict(copy.deepcopy(state[key]))
        resumed.number = whole.number
        assert resumed.method.phase == whole.method.phase
        whole.finish(), resumed.finish()
        same(whole, resumed)
        assert str(whole.method.report()) == str(resumed.method.report())
        for name, mask in whole.method.masks.items():
            assert torch.equal(mask.bits, resumed.method.masks[name].bits)


def test_grad_scaler_skips_advance_nothing(info, make_optimizer):
    run, plain = Run(info, make_optimizer), Run(info, make_optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=10**6)

    def step(x, y):
        for overflow in (True, False):
            run.backward(x, y, scaler.get_scale())
            before = copy.deepcopy((run.net.state_dict(), run.optimizer.state_dict()["state"]))
            counted = run.method.state_dict()["step"], run.method.metrics()
            if overflow:
                next(iter(run.method.weights.values())).grad.fill_(float("inf"))
            scaler.scale(torch.zeros(()))
            scaler.step(run.optimizer)
            scaler.update(64.0)
            run.optimizer.zero_grad()
            if overflow:
                after = run.net.state_dict(), run.optimizer.state_dict()["state"]
                torch.testing.assert_close(after, before, rtol=0, atol=0)
                assert (run.method.state_dict()["step"], run.method.metrics()) == counted

    def plain_step(x, y):
        plain.net(x)  # the skipped step's forward moves the norms' running statistics
        plain.step(x, y)

    run.finish(step), plain.finish(plain_step)
    same(run, plain, 1e-4)
    check_zeros(run, info)


def test_accumulation_clipping_and_a_user_s_schedule(info, make_optimizer):
    run = Run(info, make_optimizer, lr="user")
    schedule = torch.optim.lr_scheduler.ExponentialLR(run.optimizer, 0.9)
    first = run.optimizer.param_groups[0]["lr"]

    def step(x, y):
        for half in (slice(0, 8), slice(8, 16)):
            run.backward(x[half], y[half], 0.5)
        run.method.add_penalty_grad_()
        nn.utils.clip_grad_norm_(run.net.parameters(), 1.0)
        run.optimizer.step()
        run.optimizer.zero_grad()

    epochs = 0
    while not run.method.finished:
        run.epoch(step)
        schedule.step()
        epochs += 1
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(first * 0.9**epochs)
    check_zeros(run, info)


def test_the_method_s_learning_rate(info, make_optimizer):
    options = {"finetune_epochs": 4} if "finetune_epochs" in SHORT[info.name] else {}
    run = Run(info, lambda p: torch.optim.SGD(p, lr=torch.tensor(0.1)), **options)
    seen = []
    while not run.method.finished:
        lr = float(run.optimizer.param_groups[0]["lr"])
        assert lr == pytest.approx(0.1 * run.method.lr_factor)
        seen.append(lr)
        run.epoch()
    if info.cls.one_schedule:
        assert seen == pytest.approx([0.05 * (1 + math.cos(math.pi * e / len(seen))) for e in range(len(seen))])
    elif options:
        assert [lr / seen[-4] for lr in seen[-4:]] == pytest.approx([1, 1, 0.1, 0.01])


def test_a_group_added_later_has_its_own_learning_rate(info):
    run = Run(info, OPTIMIZERS["torch sgd"])
    base = run.optimizer.param_groups[0]["lr"]
    own = len(run.optimizer.param_groups)  # a method may have added one
    late = nn.Parameter(torch.zeros(3))
    run.epoch()
    run.optimizer.add_param_group({"params": [late], "lr": 0.5})
    run.epoch()  # a schedule that has begun takes it up at the next epoch
    while not run.method.finished:
        rates = [group["lr"] for group in run.optimizer.param_groups]
        factor = run.method.lr_factor
        assert rates == pytest.approx([base * factor] * own + [0.5 * factor])
        run.epoch()
    assert factor < 1
    assert run.method.state_dict()["base_lrs"] == [base] * own + [0.5]


def test_an_average_of_the_weights_is_masked_by_name(info):
    run = Run(info, OPTIMIZERS["ours sgd"])
    ema = torch.optim.swa_utils.AveragedModel(run.net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))

    def step(x, y):
        run.step(x, y)
        ema.update_parameters(run.net)

    run.finish(step)
    run.method.apply_masks_(ema)
    masks, seen = run.method.masks, 0
    for (_, p), name in zip(ema.module.named_parameters(), map(plain, dict(run.net.named_parameters())), strict=True):
        if name in masks:
            dead = ~masks[name].to_dense()
            assert torch.equal((p == 0) & dead, dead) and (info.live_zeros or torch.equal(p == 0, dead))
            seen += 1
    assert seen == len(masks) > 0
    with pytest.raises(ValueError, match=r"Linear has no parameter 0.weight"):
        run.method.apply_masks_(nn.Linear(2, 2))


def test_tied_frozen_and_deepcopied(info, make_optimizer):
    def prepare(net):
        net.insert(5, nn.Linear(72, 72, bias=False))
        net.insert(6, nn.Linear(72, 72, bias=False))
        net[6].weight = net[5].weight
        net[-1].weight.requires_grad_(False)

    run = Run(info, make_optimizer, prepare=prepare)
    frozen = run.net[-1].weight.clone()
    assert list(run.method.weights) == ["0.weight", "5.weight", "7.weight"]
    run.finish()
    check_zeros(run, info)
    assert torch.equal(run.net[-1].weight, frozen)
    twin = copy.deepcopy(run.net)
    assert torch.equal(twin[5].weight == 0, run.net[6].weight == 0)
    twin(next(batches("cnn", 1))[0]).sum().backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("wrap", ["compile", "parallel"])
def test_wrapped_models(info, wrap):
    net = NETWORKS["cnn"]()
    wrapped = torch.compile(net, backend="eager") if wrap == "compile" else nn.DataParallel(net)
    run = Run(info, OPTIMIZERS["ours sgd"], net=wrapped).finish()
    plain = Run(info, OPTIMIZERS["ours sgd"]).finish()
    assert list(run.method.masks) == list(plain.method.masks) == ["0.weight", "5.weight", "7.weight"]
    assert run.method.finalize() is wrapped
    for p, q in zip(net.parameters(), plain.method.finalize().parameters(), strict=True):
        assert (p - q).norm() <= 1e-4 * q.norm()


def test_closures(info):
    run, plain = Run(info, OPTIMIZERS["torch sgd"]), Run(info, OPTIMIZERS["torch sgd"])

    def step(x, y):
        def closure():
            run.optimizer.zero_grad()
            run.backward(x, y)

        run.optimizer.step(closure)

    run.finish(step), plain.finish()
    same(run, plain)


@pytest.mark.parametrize("scope", ["uniform", "erk"])
def test_layer_budgets(info, scope):
    if not info.exact_budget:
        pytest.skip(f"{info.name} has no budget for each layer")
    run = Run(info, OPTIMIZERS["ours sgd"], scope=scope, check=True).finish()
    check_zeros(run, info)
    shares = [m.zeros / m.numel for m in run.method.masks.values()]
    assert (max(shares) - min(shares) < 0.01) == (scope == "uniform")


def test_layer_sparsities_by_name(info):
    if not info.exact_budget:
        pytest.skip(f"{info.name} has no budget for each layer")
    wanted = {"0": 0.0, "7.weight": 0.5, "*": 0.9}
    run = Run(info, OPTIMIZERS["torch adamw"], sparsity=wanted).finish()
    shares = {name: mask.zeros / mask.numel for name, mask in run.method.masks.items()}
    assert shares == pytest.approx({"0.weight": 0.0, "5.weight": 0.9, "7.weight": 0.5}, abs=1e-3)
    run.method.finalize()


def test_finalize_early_and_a_budget_of_none(info):
    run = Run(info, OPTIMIZERS["torch sgd"])
    run.epoch()
    run.method.finalize()
    check_zeros(run, info)
    if not info.exact_budget:
        return
    none = Run(info, OPTIMIZERS["torch sgd"], sparsity=0.0).finish()
    assert none.method.finalize() is none.net and none.method.masks == {}


@pytest.mark.parametrize("name", AT_ONCE)
def test_the_guard_against_collapse(name):
    def tiny(net):
        with torch.no_grad():
            net[7].weight.mul_(1e-6)
            net[5].weight[3].mul_(1e-6)

    info, ranked = methods.get(name), {"prepare": tiny, "scope": "global"}
    skip = ranked | AT_ONCE[name]
    with pytest.warns(methods.CollapseWarning) as seen:
        Run(info, OPTIMIZERS["ours sgd"], **skip)
    constant, outputs = (str(warning.message) for warning in seen)
    assert "no weight survives in 7.weight: it gives the same output for any input" in constant
    assert "some outputs lose all their inputs" not in constant and "7.weight" not in outputs
    assert re.search(r"some outputs lose all their inputs: .*5.weight \(\d+ of 24 outputs\)", outputs)
    # where the sparsifier is made, not where the library notices
    assert {warning.filename for warning in seen} == {method_runs.__file__}
    with pytest.warns(methods.CollapseWarning, match="single ones are usual at high sparsity") as seen:
        Run(info, OPTIMIZERS["ours sgd"], **ranked).finish()
    assert seen[0].filename == method_runs.__file__  # where end_epoch is called
    with pytest.raises(ValueError, match=r"(?s)no weight survives in 7.weight.*some outputs lose all"):
        Run(info, OPTIMIZERS["ours sgd"], strict=True, **skip)
    alive = Run(info, OPTIMIZERS["ours sgd"], min_nonzeros=3, **skip)
    assert min(mask.numel - mask.zeros for mask in alive.method.masks.values()) == 3
    check_zeros(alive, info)


@pytest.mark.parametrize("name", AT_ONCE)
def test_a_network_that_is_cut_is_constant(name):
    """What the warning about a layer without weights says, and when it is the only one."""

    def cut(net):
        with torch.no_grad():
            net[7].weight.mul_(1e-9)
            net[0].weight.add_(net[0].weight.sign())  # no output of another layer dies
            net[5].weight.add_(net[5].weight.sign())

    net, info = NETWORKS["cnn"](), methods.get(name)
    with pytest.warns(methods.CollapseWarning, match="so does the whole network unless a path leads around it") as seen:
        Run(info, OPTIMIZERS["ours sgd"], net=net, prepare=cut, sparsity=0.0475, scope="global", **AT_ONCE[name])
    assert len(seen) == 1
    x, _ = next(batches("cnn", 1))
    assert torch.equal(net.eval()(x), net(2 * x + 1))


def test_metrics_are_those_of_the_last_step_until_the_next(info):
    run = Run(info, OPTIMIZERS["ours sgd"])
    zeros = sum(mask.zeros for mask in run.method.masks.values())
    assert run.method.metrics() == {"sparsity": zeros / run.method.selection.numel}
    while not run.method.finished:
        for x, y in batches("cnn", 2, run.number):
            run.step(x, y)
        sweep, last = run.method.sweep, run.method.metrics()
        assert ("lambda" in last) == (sweep.penalty != "none" or info.reparametrized)
        assert any(key.startswith("threshold") for key in last) == any(sweep.ranks)
        run.number += 1
        run.method.end_epoch(lambda model: 0.5, train_accuracy=0.9)
        zeros = sum(mask.zeros for mask in run.method.masks.values())
        after = last | {"sparsity": zeros / run.method.selection.numel}
        assert run.method.metrics() == after
        resumed = Run(info, OPTIMIZERS["ours sgd"])
        resumed.net.load_state_dict(run.net.state_dict())
        resumed.method.load_state_dict(copy.deepcopy(run.method.state_dict()))
        assert resumed.method.metrics() == after
    run.method.finalize()
    assert run.method.metrics() == after


def test_metrics_after_an_early_finalize(info):
    run = Run(info, OPTIMIZERS["torch sgd"])
    run.until_phase(len(run.method.phases) - 2)
    run.step(*next(batches("cnn", 1)))
    last = run.method.metrics()
    run.method.finalize()
    assert {k: v for k, v in run.method.metrics().items() if k != "sparsity"} == {
        k: v for k, v in last.items() if k != "sparsity"
    }


def test_report_counts_epochs_from_1_and_leaves_out_a_factor_that_was_not_applied(info):
    run = Run(info, OPTIMIZERS["ours sgd"]).finish()
    history = run.method.report().to_dict()["history"]
    assert [row["epoch"] for row in history] == list(range(1, run.number + 1))
    assert history[-1]["lr_factor"] < 1 and "lr_factor" in str(run.method.report())
    user = Run(info, OPTIMIZERS["ours sgd"], lr="user").finish().method.report()
    assert {row["lr_factor"] for row in user.to_dict()["history"]} == {None} and "lr_factor" not in str(user)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_double_and_half_networks(info, make_optimizer, dtype):
    run = Run(info, make_optimizer, prepare=lambda net: net.to(dtype), check=True)
    run.finish(lambda x, y: run.step(x.to(dtype), y))
    check_zeros(run, info)
