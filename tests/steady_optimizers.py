"""Small optimisers on the CPU for tests of steps whose lists C++ keeps, and of steps that hand all lists over."""

import torch
from torch import nn

from sparse_ops import optim
from sparse_ops.optim import Sweep, attach

SHAPES = [(6, 6), (40, 30), (7,), (8, 4, 3, 3)]
RULES = {
    "sgd": (optim.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}),
    "adamw": (optim.AdamW, torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "amsgrad": (optim.AdamW, torch.optim.AdamW, {"lr": 0.01, "betas": (0.8, 0.95), "amsgrad": True}),
}


def tensors():
    rng = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=rng)) for shape in SHAPES]


def made(rule, steady=True, groups=1, penalty=None, **settings):
    """An optimiser of ours; steady=False: it hands all lists over at each step."""
    params = tensors()
    some = [{"params": params[i::groups]} for i in range(groups)]
    cls, _, usual = RULES[rule]
    optimizer = cls(some, **usual | settings)
    if penalty:
        sweep = Sweep({f"w{i}": p for i, p in enumerate(params) if p.dim() > 1})
        sweep.track(0.9)
        sweep.set_penalty(penalty, 1e-3)
        attach(optimizer, sweep)
    if not steady:
        optimizer._bind = lambda group, bucket: None
    return optimizer


def torchs(rule, **settings):
    """torch.optim's optimiser of this rule over equal parameters."""
    _, cls, usual = RULES[rule]
    return cls(tensors(), **usual | settings)


def parameters(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def moments(state):
    """Those of a parameter's state that have its shape, by their keys."""
    return {key: t for key, t in state.items() if key != "step"}


def set_grads(optimizer, seed):
    """Random gradients that lie as their weights, as autograd's."""
    rng = torch.Generator().manual_seed(seed)
    for p in parameters(optimizer):
        p.grad = torch.empty_like(p).detach().copy_(torch.randn(p.shape, generator=rng))


def step(optimizer, seed):
    set_grads(optimizer, seed)
    optimizer.step()


def bound(optimizer, steps=3):
    """The optimiser after its first steps, with each group bound."""
    for seed in range(steps):
        step(optimizer, seed)
    assert len(optimizer._steady) == len(optimizer.param_groups)
    return optimizer


def odd_grad(p):
    """The gradient lies in another order of dimensions than its 4-D weight."""
    p.grad = p.grad.to(memory_format=torch.channels_last)


def everything(optimizer):
    """(name, tensor): the weights and all state."""
    params = list(enumerate(parameters(optimizer)))
    weights = [(f"{i}", p.detach()) for i, p in params]
    return weights + [(f"{i}.{key}", t) for i, p in params for key, t in sorted(optimizer.state[p].items())]


def assert_same(a, b):
    for (name, x), (other, y) in zip(everything(a), everything(b), strict=True):
        assert name == other and x.dtype == y.dtype and torch.equal(x, y), name
