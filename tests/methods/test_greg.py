"""GReg: against a literal loop that keeps a tensor of lambdas for each weight, its schedule at the corners, errors."""

import copy
import math
import warnings

import pytest
import torch
from small_networks import batches, cnn
from torch import nn

from sparse_ops import methods, optim

pytestmark = pytest.mark.filterwarnings("ignore::sparse_ops.methods.CollapseWarning")
RATIOS = {"0.weight": 0.0, "5.weight": 0.83, "7.weight": 0.5}
SHORT = {"update_every": 3, "stabilize_steps": 4, "d_lambda": 0.1, "tau": 0.3, "regularize_lr": 0.03}
PICK = {"d_pick": 0.01, "tau_pick": 0.03}


def start(net=None, cls=optim.SGD, variant=1, **options):
    net = cnn() if net is None else net
    optimizer = cls(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    settings = {"sparsity": RATIOS, "count": "ceil", "pretrained": True, "variant": variant} | SHORT
    settings |= PICK if variant == 2 else {}
    return net, optimizer, methods.GReg(net, optimizer, **(settings | options))


def test_the_report_lists_no_learning_rate_that_was_not_applied():
    rates = {"regularize_lr": 0.03, "finetune_lr": 0.01}
    assert rates.items() <= start()[2].report().settings.items()
    _, optimizer, greg = start(lr="user")
    assert optimizer.param_groups[0]["lr"] == 0.1 and not rates.keys() & greg.report().settings.keys()


def literal(net, variant, kept, data, decay=5e-4, count=100):
    """Plain PyTorch: yields lambda by weight, the weights after the step and the chosen ones; ends at the pruning."""
    weights = {name: dict(net.named_parameters())[name] for name in RATIOS}
    lambdas = {name: torch.zeros_like(w) for name, w in weights.items()}
    sgd = torch.optim.SGD(net.parameters(), lr=SHORT["regularize_lr"], momentum=0.9, weight_decay=decay)

    def choose():
        chosen = {}
        for name, w in weights.items():
            n = min(math.ceil(RATIOS[name] * w.numel()), w.numel() - 1)
            order = w.detach().abs().flatten().argsort(stable=True)
            chosen[name] = torch.zeros(w.numel(), dtype=torch.bool).index_fill_(0, order[:n], True).view(w.shape)
        return chosen

    chosen, finished = (choose() if variant == 1 else None), {}
    for t, (x, y) in zip(range(count), data, strict=False):
        if len(finished) < len(weights) and t % SHORT["update_every"] == 0:
            picked = chosen
            for name, lam in lambdas.items():
                if RATIOS[name] == 0:
                    finished.setdefault(name, t)
                elif variant == 1:
                    lam[chosen[name]] += SHORT["d_lambda"]
                elif picked is None:
                    lam += PICK["d_pick"]
                    if lam.max() >= PICK["tau_pick"]:
                        chosen = choose()
                else:
                    lam[chosen[name]] += SHORT["d_lambda"]
                    lam[~chosen[name]] = -decay if kept == "paper" else -1e-4
                if chosen is not None and lam.max() > SHORT["tau"]:
                    finished.setdefault(name, t)
        sgd.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        for name, w in weights.items():
            w.grad += lambdas[name] * w.detach()
        sgd.step()
        yield lambdas, weights, chosen
        if len(finished) == len(weights) and t - max(finished.values()) == SHORT["stabilize_steps"]:
            return


@pytest.mark.parametrize("cls", [optim.SGD, torch.optim.SGD])
@pytest.mark.parametrize("variant, kept", [(1, "paper"), (2, "paper"), (2, "code")])
def test_a_live_run_is_the_literal_loop(variant, kept, cls):
    """Step by step from equal states: lambda exactly, weights to rounding, the chosen weights, and when it is over."""
    net, optimizer, greg = start(cls=cls, variant=variant, kept=kept, max_regularize_epochs=100)
    twin = copy.deepcopy(net)
    feed = batches("cnn", 100)
    reference = literal(twin, variant, kept, batches("cnn", 100))
    assert optimizer.param_groups[0]["lr"] == 0.03
    taken, over = 0, False
    for lambdas, weights, chosen in reference:
        assert not over
        strengths = greg.sweep.coefficients[:, :2].clone()
        x, y = next(feed)
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        taken += 1
        for row, name in enumerate(RATIOS):
            if chosen is not None and RATIOS[name]:
                pushed, left = (lambdas[name][mask].unique().tolist() for mask in (chosen[name], ~chosen[name]))
                assert pushed == [strengths[row, 0]] and left == pytest.approx([strengths[row, 1].item()], rel=1e-7)
                assert torch.equal(greg.sweep.groups[name].to_dense(), chosen[name])
            else:
                assert lambdas[name].unique().tolist() == [strengths[row, 1]]
            mine, theirs = greg.weights[name], weights[name]
            assert (mine - theirs).norm() <= 2e-6 * taken * theirs.norm()  # rounding is amplified by training
        over = greg._judge(None, None)[1] is not None
    assert over
    events = (
        4 if variant == 1 else 3 + 3
    )  # .1 .2 .3 .4, where the float32 sum .3 is not above .3; .01 .02 .03 .13 .23 .33
    assert taken == (events - 1) * 3 + 1 + 4
    change = greg.end_epoch()
    assert change.after == "finetune" and "lambda has exceeded tau = 0.3, and 4 steps have followed" in change.reason
    left = sum(w[chosen[name]].abs().sum().item() for name, w in weights.items())
    share = left / sum(w.abs().sum().item() for w in weights.values())
    assert greg.report().history[-1]["magnitude_left"] == pytest.approx(share, rel=1e-4)
    assert f"the weights to be pruned hold {share:.2g} of all magnitude" in change.reason
    for name, mask in greg.masks.items():
        assert torch.equal(~mask.to_dense(), chosen[name])
        assert torch.equal(greg.weights[name] == 0, chosen[name])
    assert len(optimizer.state) == 0 and optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    assert sum(mask.zeros for mask in greg.masks.values()) == math.ceil(0.83 * 72 * 24) + math.ceil(0.5 * 24 * 4)


def test_the_first_growth_is_in_the_first_step_and_a_penalty_that_the_user_adds_is_that_of_its_step():
    runs = [start(variant=2), start(variant=2)]
    seen = []
    for x, y in batches("cnn", 20):
        for net, optimizer, greg in runs:
            nn.functional.cross_entropy(net(x), y).backward()
            if greg is runs[1][2]:
                greg.add_penalty_grad_()
            else:
                seen.append(greg.sweep.coefficients[1, 0].item())
            optimizer.step()
            optimizer.zero_grad()
        for p, q in zip(runs[0][0].parameters(), runs[1][0].parameters(), strict=True):
            assert (p - q).norm() <= 1e-5 * q.norm()
    lambdas = [0.01] * 3 + [0.02] * 3 + [0.03] * 3 + [0.13] * 3 + [0.23] * 3 + [0.33] * 5
    assert seen == pytest.approx(lambdas, rel=1e-6)


def test_one_step_is_enough_where_lambda_jumps_over_tau():
    net, optimizer, greg = start(d_lambda=2.0, tau=1.0, stabilize_steps=0)
    assert greg.sweep.coefficients[1].tolist()[:2] == [2.0, 0.0]
    x, y = next(batches("cnn", 1))
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
    assert greg.end_epoch().after == "finetune"


@pytest.mark.parametrize("variant", [1, 2])
def test_a_phase_without_length_prunes_at_once(variant):
    net = cnn()
    before = {name: w.detach().clone() for name, w in dict(net.named_parameters()).items() if name in RATIOS}
    _, _, greg = start(net, variant=variant, max_regularize_epochs=0)
    assert greg.phase == "finetune" and greg.sweep.penalty == "none" and greg.sweep.groups == {}
    for name, mask in greg.masks.items():
        w = before[name].abs().flatten()
        assert w[~mask.to_dense().flatten()].max() <= w[mask.to_dense().flatten()].min() if mask.zeros else True


def test_a_phase_that_is_too_short():
    options = {"finetune_epochs": 1, "total_steps": 60}
    message = r"max_regularize_epochs is 2, which is 40 steps, but .* 99,991 \(10,000 growths, update_every = 10\)"
    with pytest.raises(ValueError, match=message):
        start(max_regularize_epochs=2, update_every=10, d_lambda=1e-4, tau=1.0, **options)
    with pytest.raises(ValueError, match=r"update_every = 50\), and stabilize_steps = 4 follow; fit=True scales them"):
        start(max_regularize_epochs=2, update_every=50, **options)
    _, _, fits = start(max_regularize_epochs=2, update_every=50, fit=True, **options)
    assert fits.growth.steps() == 40 and fits.total_epochs == 3
    _, _, early = start(max_regularize_epochs=5, finetune_epochs=1, total_steps=60)  # 14 of 50 steps: two epochs
    assert early.course == (("pretrain", 0), ("regularize", 2), ("finetune", 1))


def test_without_total_steps_a_phase_that_is_too_short_is_warned_of_after_an_epoch():
    net, optimizer, greg = start(max_regularize_epochs=3, update_every=100)
    for x, y in batches("cnn", 2):
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    with pytest.warns(
        UserWarning, match=r"exceeds tau = 0.3 after 301 steps, but with 2 steps an epoch the 3 .* 6"
    ) as seen:
        greg.end_epoch()
    assert seen[0].filename == __file__
    greg.end_epoch()
    change = greg.end_epoch()
    assert change.after == "finetune" and "its 3 epochs are over, with lambda at 0.1 of 0.3" in change.reason
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, _, long = start(max_regularize_epochs=3)
        for p in long.model.parameters():
            p.grad = torch.zeros_like(p)
        for _ in range(4):
            long.optimizer.step()
        long.end_epoch()


def test_learning_rates_are_absolute_but_for_the_dense_phase():
    net = cnn()
    groups = [
        {"params": [net[0].weight], "lr": 0.2},
        {"params": [p for p in net.parameters() if p is not net[0].weight]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    greg = methods.GReg(net, optimizer, 0.5, 4, 1, 4, **SHORT)
    rates = []
    while not greg.finished:
        rates.append(tuple(group["lr"] for group in optimizer.param_groups))
        greg.end_epoch() if greg.phase != "regularize" else warned(greg)
    dense = [0.2, 0.2, 0.02, 0.002]
    tuned = [0.01, 0.01, 0.001, 0.0001]
    assert [rate for rate, _ in rates] == pytest.approx([*dense, 0.03, *tuned])
    assert [rate for _, rate in rates] == pytest.approx([r / 2 for r, _ in rates])


def warned(greg):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        greg.end_epoch()


def test_the_kept_weights_of_each_group_feel_their_own_decay():
    net = cnn()
    groups = [
        {"params": [net[5].weight], "weight_decay": 0.25},
        {"params": [p for p in net.parameters() if p is not net[5].weight]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=0.5)
    greg = methods.GReg(net, optimizer, RATIOS, pretrained=True, variant=2, **(SHORT | PICK | {"update_every": 1}))

    def step():
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()

    for _ in range(3):
        step()
    assert greg.sweep.coefficients[:, 1].tolist() == [0.0, -0.25, -0.5]
    before = {name: w.detach().clone() for name, w in greg.weights.items()}
    step()
    for name in ("5.weight", "7.weight"):  # decay and the negative penalty cancel
        kept = ~greg.sweep.groups[name].to_dense()
        torch.testing.assert_close(greg.weights[name].detach()[kept], before[name][kept], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "make",
    [optim.AdamW, torch.optim.AdamW, lambda p, **o: torch.optim.Adam(p, decoupled_weight_decay=True, **o)],
    ids=["ours", "torch", "adam"],
)
def test_decoupled_decay_cannot_be_cancelled(make):
    net = cnn()
    optimizer = make(net.parameters(), weight_decay=0.01)
    message = r"kept is 'paper', .* but Adam(W)? keeps its weight_decay of 0.01 out of it; use kept='code', or SGD"
    with pytest.raises(ValueError, match=message):
        methods.GReg2(net, optimizer, 0.5, pretrained=True)
    methods.GReg2(net, optimizer, 0.5, pretrained=True, kept="code").detach()
    methods.GReg(net, optimizer, 0.5, pretrained=True).detach()
    methods.GReg2(net, make(net.parameters(), weight_decay=0.0), 0.5, pretrained=True).detach()
    methods.GReg2(net, torch.optim.Adam(net.parameters(), weight_decay=0.01), 0.5, pretrained=True)


def test_layer_counts_of_the_authors():
    net = nn.Sequential(nn.Linear(10, 1, bias=False), nn.Linear(1, 1, bias=False), nn.Linear(7, 3, bias=False))
    for sparsity, zeros in (
        (0.9, [9, 0, 19]),
        (0.95, [9, 0, 20]),
        ({"*": 0.999}, [9, 0, 20]),
        ({"0": 0.11, "*": 0}, [2, 0, 0]),
    ):
        settings = SHORT | {"pretrained": True, "max_regularize_epochs": 0, "finetune_epochs": 0}
        model = copy.deepcopy(net)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        greg = methods.GReg(model, optimizer, sparsity, count="ceil", **settings)
        assert [mask.zeros for mask in greg.masks.values()] == zeros
        assert greg.finalize() is model


def test_for_epochs():
    assert methods.GReg.for_epochs(600) == {
        "pretrain_epochs": 200,
        "max_regularize_epochs": 280,
        "finetune_epochs": 120,
        "fit": True,
    }
    for epochs in range(1, 30):
        lengths = methods.GReg2.for_epochs(epochs)
        assert sum(v for k, v in lengths.items() if k != "fit") == epochs and lengths["pretrain_epochs"] >= 1
    net = cnn()
    greg = methods.GReg2(net, optim.SGD(net.parameters(), lr=0.1), 0.5, **methods.GReg2.for_epochs(10), total_steps=230)
    assert greg.total_epochs == 10 and greg.growth.steps() == 23 * 5


@pytest.mark.parametrize(
    "options, error, message",
    [
        (
            {"pretrained": False},
            ValueError,
            r"prunes a trained network: give pretrained=True .* pretrain_epochs \(now 0\)",
        ),
        ({"variant": 3}, ValueError, "variant is 3; it may be 1 or 2"),
        ({"kept": "none"}, ValueError, "kept is 'none'"),
        ({"fit": True}, ValueError, "fit needs total_steps"),
        ({"d_lambda": 0.0}, ValueError, "d_lambda is 0.0, expected a finite number > 0"),
        ({"tau": math.inf}, ValueError, "tau is inf"),
        ({"tau_pick": "1"}, ValueError, "tau_pick is '1'"),
        ({"update_every": 0}, ValueError, "update_every is 0"),
        ({"update_every": 2.5}, TypeError, "update_every is 2.5"),
        ({"stabilize_steps": -1}, ValueError, "stabilize_steps is -1"),
        ({"regularize_lr": -1.0}, ValueError, "regularize_lr is -1.0"),
        ({"d_lambda": 1e-9}, ValueError, "d_lambda is 1e-09: tau = 0.3 is more than a million of it"),
        ({"total_steps": 3}, ValueError, "total_steps is 3, less than one in each of the 430 epochs"),
    ],
)
def test_what_it_refuses(options, error, message):
    with pytest.raises(error, match=message):
        start(**options)


def test_checkpoints_of_another_growth_or_variant():
    _, _, a = start()
    _, _, b = start(update_every=4)
    _, _, c = start(variant=2)
    with pytest.raises(ValueError, match="the checkpoint has every 3, here it is 4"):
        b.load_state_dict(a.state_dict())
    with pytest.raises(ValueError, match="the checkpoint is of the method 'greg1', not 'greg2'"):
        c.load_state_dict(a.state_dict())


@pytest.mark.parametrize("cls", [optim.SGD, torch.optim.SGD])
@pytest.mark.parametrize("variant", [1, 2])
def test_the_penalty_meets_an_optimiser_without_momentum(variant, cls):
    net = cnn()
    optimizer = cls(net.parameters(), lr=0.1, momentum=0.9)
    greg = methods.GReg(net, optimizer, RATIOS, 1, 100, variant=variant, **(SHORT | PICK))
    x, y = next(batches("cnn", 1))
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
    assert all(state["momentum_buffer"].any() for state in optimizer.state.values()) and len(optimizer.state) == 8
    assert greg.end_epoch().after == "regularize" and len(optimizer.state) == 0


def test_strict_finds_a_collapse_before_the_penalty_grows():
    net = cnn()
    with torch.no_grad():
        net[5].weight[3].mul_(1e-9)
    with pytest.raises(ValueError, match=r"some outputs lose all their inputs: 5.weight \(1 of 24 outputs\)"):
        start(net, sparsity={"5": 0.1, "*": 0.0}, strict=True)
