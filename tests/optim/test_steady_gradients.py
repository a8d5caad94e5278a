"""Steps whose lists C++ keeps, with gradients that are missing, lie otherwise than their weights, or have no memory."""

import pytest
import torch
from steady_optimizers import RULES, assert_same, made, odd_grad, parameters, set_grads

from sparse_ops import extension

pytestmark = pytest.mark.skipif(extension.failure() is not None, reason="needs the C++ kernels")


@pytest.mark.parametrize("rule", RULES)
def test_gradients_that_come_and_go(rule):
    a, b = made(rule), made(rule, False)
    for optimizer in (a, b):
        for seed in range(9):
            set_grads(optimizer, seed)
            if seed in (4, 5):
                parameters(optimizer)[2].grad = None
            odd_grad(parameters(optimizer)[3])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    assert_same(a, b)


@pytest.mark.parametrize("rule", RULES)
def test_gradients_of_zeros_without_memory_are_zero(rule):
    a, b = made(rule), made(rule)
    for optimizer, zeros in ((a, torch._efficientzerotensor), (b, torch.zeros)):
        for seed in range(8):
            set_grads(optimizer, seed)
            if seed in (0, 1, 5):
                parameters(optimizer)[1].grad = zeros((40, 30))
            if seed == 6:
                for p in parameters(optimizer):
                    p.grad = torch._neg_view(-p.grad) if optimizer is a else p.grad
            optimizer.step()
    assert a._steady
    assert_same(a, b)


@pytest.mark.parametrize("rule", RULES)
def test_gradients_that_lie_otherwise_are_not_offered_for_ever(rule):
    a = made(rule)
    for seed in range(12):
        set_grads(a, seed)
        odd_grad(parameters(a)[3])
        a.step()
    assert not a._steady


def test_one_group_of_odd_gradients_leaves_the_others_bound():
    a = made("adamw", groups=2)
    for seed in range(12):
        set_grads(a, seed)
        odd_grad(next(p for p in parameters(a) if p.dim() == 4))
        a.step()
    assert [id(group) in a._steady for group in a.param_groups] == [True, False]


@pytest.mark.parametrize("rule", RULES)
def test_odd_gradients_now_and_then_do_not_end_it(rule):
    a, b = made(rule), made(rule, False)
    for optimizer in (a, b):
        for seed in range(20):
            set_grads(optimizer, seed)
            if seed % 4 == 3:
                odd_grad(parameters(optimizer)[3])
            optimizer.step()
    assert a._steady
    assert_same(a, b)


def test_odd_gradients_that_end_are_found_out():
    a = made("sgd")
    for seed in range(100):
        set_grads(a, seed)
        if seed < 10:
            odd_grad(parameters(a)[3])
        a.step()
    assert a._steady
