"""SGD and AdamW without a sweep: torch.optim's rule, state and contracts."""

import copy
import pickle

import pytest
import torch
from torch import nn

from sparse_ops import optim

SGD = [
    {"lr": 0.1},
    {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True},
    {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 1e-3},
]
ADAMW = [{"lr": 1e-2}, {"lr": 1e-2, "amsgrad": True, "betas": (0.8, 0.95)}, {"lr": 1e-2, "maximize": True, "eps": 1e-6}]
CASES = [(optim.SGD, torch.optim.SGD, options) for options in SGD]
CASES += [(optim.AdamW, torch.optim.AdamW, options) for options in ADAMW]
PAIRS = [CASES[1], CASES[4]]


def model(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(20, 7))
    return net.to(memory_format=torch.channels_last).to(dtype)


def set_grads(net, step, skip=()):
    rng = torch.Generator().manual_seed(step)
    for i, p in enumerate(net.parameters()):
        grad = torch.randn(p.shape, generator=rng).to(p.dtype)  # contiguous: other strides than a channels_last weight
        p.grad = None if i in skip else grad


def agree(a, b, tolerance=2e-6):
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert (p - q).norm() <= tolerance * q.norm()


@pytest.mark.parametrize("ours, theirs, options", CASES)
def test_the_rule(ours, theirs, options):
    a, b = model(), model()
    x, y = ours(a.parameters(), **options), theirs(b.parameters(), **options)
    for step in range(6):
        skip = {0: (1,), 3: (0, 2)}.get(step, ())  # the second gets its first gradient later, two miss one step
        for net in (a, b):
            set_grads(net, step, skip)
        before = [None if p.grad is None else p.grad.clone() for p in a.parameters()]
        x.step()
        y.step()
        for p, grad in zip(a.parameters(), before, strict=True):
            assert grad is None or torch.equal(p.grad, grad), "the gradient buffer was written"
    agree(a, b)


@pytest.mark.parametrize("ours, theirs, options", PAIRS)
@pytest.mark.parametrize("forth", [True, False])
def test_state_goes_to_torch_and_back(ours, theirs, options, forth):
    first, second = (ours, theirs) if forth else (theirs, ours)
    a, reference = model(), model()
    x, whole = first(a.parameters(), **options), theirs(reference.parameters(), **options)
    for step in range(3):
        set_grads(a, step), x.step()
    b = copy.deepcopy(a)
    y = second(b.parameters(), lr=123.0)
    y.load_state_dict(copy.deepcopy(x.state_dict()))
    assert y.param_groups[0]["lr"] == options["lr"]
    for step in range(3, 6):
        set_grads(b, step), y.step()
    for step in range(6):
        set_grads(reference, step), whole.step()
    agree(b, reference)
    assert set(x.state_dict()["param_groups"][0]) == set(whole.state_dict()["param_groups"][0])
    assert set(x.state[a[0].weight]) == set(whole.state[reference[0].weight])


@pytest.mark.parametrize("ours, theirs, options", PAIRS)
def test_groups_schedulers_tensor_lr_and_closures(ours, theirs, options):
    losses = []
    for cls in (ours, theirs):
        net = model()
        groups = [{"params": net[0].parameters(), "lr": torch.tensor(0.05)}, {"params": net[4].parameters()}]
        optimizer = cls(groups, **options)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        x, target = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 7

        def closure(net=net, optimizer=optimizer, x=x, target=target):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), target)
            loss.backward()
            return loss

        for _ in range(4):
            loss = optimizer.step(closure)
            schedule.step()
        losses.append(loss.item())
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.05 / 16)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("ours, theirs, options", PAIRS)
def test_grad_scaler_unscales_and_a_skipped_step_advances_nothing(ours, theirs, options):
    nets = []
    for cls in (ours, theirs):
        net = model()
        optimizer = cls(net.parameters(), **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(5):
            set_grads(net, step)
            with torch.no_grad():
                for p in net.parameters():
                    p.grad.mul_(scaler.get_scale())
                if step in (0, 2):
                    net[4].weight.grad[0, 0] = float("inf")
            before = copy.deepcopy((net.state_dict(), optimizer.state_dict()["state"]))
            scaler.scale(torch.zeros(()))
            scaler.step(optimizer)
            scaler.update()
            if step in (0, 2):
                torch.testing.assert_close((net.state_dict(), optimizer.state_dict()["state"]), before, rtol=0, atol=0)
        nets.append(net)
    agree(*nets)


@pytest.mark.parametrize("ours, theirs, options", PAIRS)
def test_half_weights_keep_half_state(ours, theirs, options):
    a, b = model(dtype=torch.bfloat16), model(dtype=torch.bfloat16)
    x, y = ours(a.parameters(), **options), theirs(b.parameters(), **options)
    for step in range(3):
        set_grads(a, step), x.step()
        set_grads(b, step), y.step()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        for key, value in x.state[p].items():
            assert value.dtype == y.state[q][key].dtype
        # torch rounds each intermediate to bfloat16, this op once: a few of its 2^-8 apart
        assert (p - q).float().norm() <= 6 * 2**-8 * q.float().norm()


@pytest.mark.parametrize("ours, theirs, options", PAIRS)
def test_half_weights_with_float32_state(ours, theirs, options):
    a = model(dtype=torch.bfloat16)
    x = ours(a.parameters(), **options, state_dtype=torch.float32)
    # the same rule in float64 on weights that are rounded to bfloat16 after each step
    b = model(dtype=torch.bfloat16).double()
    y = theirs(b.parameters(), **options)
    for step in range(4):
        set_grads(a, step), x.step()
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            q.grad = p.grad.double()
        y.step()
        with torch.no_grad():
            for p, q in zip(a.parameters(), b.parameters(), strict=True):
                assert (p.double() - q).norm() <= 2**-8 * q.norm()  # one rounding to 8 bits
                q.copy_(p)
    floats = [(p, key) for p in x.state for key, v in x.state[p].items() if v.is_floating_point() and v.dim()]
    assert all(x.state[p][key].dtype == torch.float32 for p, key in floats)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        for key, value in x.state[p].items():
            if value.dim():
                torch.testing.assert_close(value.double(), y.state[q][key], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("ours, theirs, options", PAIRS)
def test_loading_does_not_cast_float32_state_down(ours, theirs, options):
    nets = [model(dtype=torch.bfloat16) for _ in range(3)]
    x = ours(nets[0].parameters(), **options, state_dtype=torch.float32)
    set_grads(nets[0], 0), x.step()
    saved = copy.deepcopy(x.state_dict())
    same, half = (
        ours(nets[1].parameters(), **options),
        ours(nets[2].parameters(), **options, state_dtype=torch.bfloat16),
    )
    same.load_state_dict(saved), half.load_state_dict(saved)
    again = pickle.loads(pickle.dumps(x))
    for p, q, r in zip(*(net.parameters() for net in nets), strict=True):
        for key, value in x.state[p].items():
            if value.dim():
                assert torch.equal(same.state[q][key], value) and same.state[q][key].dtype == torch.float32
                assert same.state[q][key].data_ptr() != value.data_ptr()
                assert half.state[r][key].dtype == torch.bfloat16
    assert again.state_dtype == torch.float32
    with pytest.raises(ValueError, match=r"state_dtype is torch\.int8"):
        ours(nets[0].parameters(), **options, state_dtype=torch.int8)


@pytest.mark.parametrize("cls", [optim.SGD, optim.AdamW])
def test_copies_and_refusals(cls):
    net = model()
    optimizer = cls(net.parameters(), lr=0.1, foreach=True)
    set_grads(net, 0), optimizer.step()
    assert isinstance(optimizer, getattr(torch.optim, cls.__name__)), "a torch.optim optimiser of that name"
    assert copy.deepcopy(optimizer).sweep is None
    with pytest.raises(ValueError, match="differentiable is True"):
        cls(net.parameters(), lr=0.1, differentiable=True)
    for name, bad in (("lr", -1.0), ("lr", float("nan")), ("lr", torch.tensor(float("inf"))), ("weight_decay", -1.0)):
        with pytest.raises(ValueError, match=f"{cls.__name__}: {name} is {float(bad)}, expected a finite number >= 0"):
            cls(net.parameters(), **{name: bad})
        with pytest.raises(ValueError, match=f"{cls.__name__}: {name} is {float(bad)}"):
            optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], name: bad})
    with pytest.raises(TypeError, match=f"{cls.__name__}: lr is '0.1', expected a number >= 0"):
        cls(net.parameters(), lr="0.1")
    with pytest.raises(TypeError, match=r"a parameter of shape \(3,\) is torch\.complex64, expected float16"):
        cls([nn.Parameter(torch.zeros(3, dtype=torch.complex64))])
    cls([nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)]).step()  # frozen: left alone, as by torch
    assert len(optimizer.param_groups) == 1
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = cls(embedding.parameters(), lr=0.1)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"\(5, 3\) parameter is torch.sparse_coo"):
        optimizer.step()
