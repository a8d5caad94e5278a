"""Changes between two steps whose lists C++ keeps: the bits are those of steps that hand all lists over."""

import copy

import pytest
import torch
from steady_optimizers import RULES, assert_same, bound, made, moments, parameters, step
from torch import nn

from sparse_ops import extension, launch

pytestmark = pytest.mark.skipif(extension.failure() is not None, reason="needs the C++ kernels")
ADAMW = [rule for rule in RULES if rule != "sgd"]


def replace_data(optimizer):
    for p in parameters(optimizer):
        p.data = p.data.clone() * 0.5


def transpose_in_place(optimizer):
    square = parameters(optimizer)[0]
    square.data = square.data.t()


def narrow(optimizer):
    p = next(p for p in parameters(optimizer) if p.dim() == 1)
    p.data = p.data[:3]
    for key in moments(optimizer.state[p]):
        optimizer.state[p][key] = torch.ones(3)


def halve(optimizer):
    for p in parameters(optimizer):
        p.grad = None
        p.data = p.data.bfloat16()


def replace_data_of_state(optimizer):
    for p in parameters(optimizer):
        for t in optimizer.state[p].values():
            t.data = t.data.double() * 2


def load(optimizer):
    state = copy.deepcopy(optimizer.state_dict())
    for entry in state["state"].values():
        for t in entry.values():
            t *= 2
    optimizer.load_state_dict(state)


def new_moments(optimizer):
    for p in parameters(optimizer):
        for key in moments(optimizer.state[p]):
            optimizer.state[p][key] = torch.full_like(p, 0.25).detach()


def new_last_moment(optimizer):
    for p in parameters(optimizer):
        key = list(moments(optimizer.state[p]))[-1]
        optimizer.state[p][key] = torch.full_like(p, 0.25).detach()


def new_states(optimizer):
    for p in parameters(optimizer)[:2]:
        optimizer.state[p] = {key: torch.ones_like(t) for key, t in optimizer.state[p].items()}


def lose_a_state(optimizer):
    del optimizer.state[parameters(optimizer)[0]]


def forget(optimizer):
    optimizer.state.clear()


def grow(optimizer):
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(5))], "weight_decay": 0.0})


def set_numbers(optimizer):
    for group in optimizer.param_groups:
        others = {"lr": 0.03, "momentum": 0.5, "betas": (0.5, 0.6), "eps": 0.1, "weight_decay": 0.0, "maximize": True}
        group.update({name: value for name, value in others.items() if name in group})


def numbers_in_tensors(optimizer):
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.03)
        if "betas" in group:
            group["betas"] = (torch.tensor(0.5), torch.tensor(0.6))


def other_parameter(optimizer):
    optimizer.param_groups[0]["params"][0] = nn.Parameter(torch.ones(6, 6))


def move_a_state(optimizer):
    params = optimizer.param_groups[0]["params"]
    old, new = params[0], nn.Parameter(torch.ones(6, 6))
    optimizer.state[new] = optimizer.state.pop(old)
    params[0] = new


def swap(optimizer):
    p = parameters(optimizer)[1]
    q = nn.Parameter(torch.ones_like(p))
    optimizer.release()
    torch.utils.swap_tensors(p, q)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "change",
    [replace_data, transpose_in_place, narrow, halve, replace_data_of_state, load, new_moments, new_last_moment,
     new_states, lose_a_state, forget, grow, set_numbers, numbers_in_tensors, other_parameter, move_a_state, swap],
)  # fmt: skip
def test_a_change_between_two_steps_is_seen(change, rule, groups):
    check(change, rule, groups)


def no_momentum(optimizer):
    optimizer.param_groups[0]["momentum"] = 0.0


def test_momentum_that_is_given_up_is_seen():
    check(no_momentum, "sgd", 2, steady=1)


def toggle_amsgrad(optimizer):
    for group in optimizer.param_groups:
        group["amsgrad"] = not group["amsgrad"]


def exchange_moments(optimizer):
    for state in optimizer.state.values():
        state["exp_avg"], state["exp_avg_sq"] = state["exp_avg_sq"], state["exp_avg"].abs()


def write_steps(optimizer):
    for i, p in enumerate(parameters(optimizer)):
        optimizer.state[p]["step"].fill_(10 + i // 2)


def new_steps(optimizer):
    for p in parameters(optimizer):
        optimizer.state[p]["step"] = torch.tensor(20.0)


def share_steps(optimizer):
    shared = torch.tensor(20.0)
    for p in parameters(optimizer):
        optimizer.state[p]["step"] = shared


@pytest.mark.parametrize("rule", ADAMW)
@pytest.mark.parametrize("change", [toggle_amsgrad, exchange_moments, write_steps, new_steps, share_steps])
def test_a_change_of_adamws_state_is_seen(change, rule):
    check(change, rule, 1)


def check(change, rule, groups, steady=None):
    a, b = bound(made(rule, True, groups)), made(rule, False, groups)
    for seed in range(3):
        step(b, seed)
    assert not b._steady
    for optimizer in (a, b):
        change(optimizer)
        for seed in range(3, 7):
            step(optimizer, seed)
    assert_same(a, b)
    assert len(a._steady) == (len(a.param_groups) if steady is None else steady), "it is bound again"


@pytest.mark.parametrize("rule", RULES)
def test_other_backends_and_watchers_are_served(rule):
    optimizer = bound(made(rule))
    kept = next(iter(optimizer._steady.values())).bound
    with launch.forced("reference"):
        step(optimizer, 3)
    assert not optimizer._steady
    step(optimizer, 4)
    assert next(iter(optimizer._steady.values())).bound is not kept


@pytest.mark.parametrize("made_of", [torch._neg_view, lambda t: torch._efficientzerotensor(t.shape)])
@pytest.mark.parametrize("rule", RULES)
def test_a_weight_whose_memory_is_not_what_it_holds_is_named(rule, made_of):
    optimizer = bound(made(rule))
    p = parameters(optimizer)[1]
    good, p.data = p.data, made_of(p.data)
    before = [t.clone() for q in parameters(optimizer) for t in moments(optimizer.state[q]).values()]
    with pytest.raises(ValueError, match=r"regularized_.*_: weights\[1\] is a .*, shape \(40, 30\)"):
        step(optimizer, 3)
    after = [t for q in parameters(optimizer) for t in moments(optimizer.state[q]).values()]
    assert all(map(torch.equal, before, after))
    p.data = good
    step(optimizer, 4)
    assert optimizer._steady


@pytest.mark.parametrize("rule", RULES)
def test_errors_are_still_raised(rule):
    optimizer = bound(made(rule))
    first = parameters(optimizer)[0]
    first.grad = torch.randn(6, 6).to_sparse()
    with pytest.raises(ValueError, match="sparse"):
        optimizer.step()
    step(optimizer, 3)
    step(optimizer, 4)
    assert optimizer._steady
    group = optimizer.param_groups[0]
    group |= {"nesterov": True, "dampening": 0.5} if rule == "sgd" else {"betas": (0.9, 1.5)}
    before = first.detach().clone()
    with pytest.raises(ValueError, match="nesterov" if rule == "sgd" else "beta2 is 1.5"):
        optimizer.step()
    assert torch.equal(before, first)
