"""What C++ keeps of an optimiser it lets go: of copies, of removed groups and states, for conversions that swap."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from steady_optimizers import RULES, assert_same, bound, made, parameters, step
from torch import nn

from sparse_ops import extension

pytestmark = [
    pytest.mark.skipif(extension.failure() is not None, reason="needs the C++ kernels"),
    pytest.mark.parametrize("rule", RULES),
]


def linear(rule):
    """A module and its optimiser."""
    cls, _, settings = RULES[rule]
    model = nn.Linear(4, 4)
    return model, cls(model.parameters(), **settings)


def all_freed(seen):
    gc.collect()
    return all(ref() is None for ref in seen)


def test_copies_and_pickles_are_bound_anew(rule):
    a = bound(made(rule))
    copied, pickled = copy.deepcopy(a), pickle.loads(pickle.dumps(a))
    assert not copied._steady and not pickled._steady
    kept = [p.detach().clone() for p in parameters(a)]
    for other in (copied, pickled):
        for seed in (3, 4, 5):
            step(other, seed)
        assert other._steady
    assert all(torch.equal(p, q) for p, q in zip(parameters(a), kept, strict=True))
    for seed in (3, 4, 5):
        step(a, seed)
    assert_same(a, copied)
    assert_same(a, pickled)


def test_nothing_is_kept_alive(rule):
    optimizer = bound(made(rule))
    seen = [weakref.ref(t) for p in parameters(optimizer) for t in (p, *optimizer.state[p].values())]
    del optimizer
    assert all_freed(seen)


def test_parameters_that_conversions_swap_are_not_bound(rule):
    """Conversions of a module may swap its tensors, which must then have no other owner."""
    model, optimizer = linear(rule)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        for dtype in (torch.bfloat16, torch.float32):
            for seed in range(4):
                step(optimizer, seed)
            assert not optimizer._steady
            model.to(dtype)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    step(optimizer, 4)
    step(optimizer, 5)
    assert optimizer._steady


def refer_by_attribute(p, optimizer):
    p.owner = optimizer


def refer_by_gradient_hook(p, optimizer):
    p.register_hook(lambda grad: (optimizer, grad)[1])


@pytest.mark.parametrize("refer", [refer_by_attribute, refer_by_gradient_hook])
def test_parameters_that_refer_to_the_optimiser_are_freed(refer, rule):
    optimizer = made(rule)
    for p in parameters(optimizer):
        refer(p, optimizer)
    for seed in range(5):
        step(optimizer, seed)
    assert not optimizer._steady
    seen = [weakref.ref(parameters(optimizer)[0])]
    del optimizer, p
    assert all_freed(seen)


def test_parameters_with_a_hook_after_accumulation_are_not_bound(rule):
    optimizer = made(rule)
    handle = parameters(optimizer)[0].register_post_accumulate_grad_hook(lambda _: None)
    for seed in range(4):
        step(optimizer, seed)
    assert not optimizer._steady
    handle.remove()
    step(optimizer, 4)
    assert optimizer._steady


def test_a_penalty_added_before_the_step_is_bound_and_freed(rule):
    """The sweep's own hooks, which last from that call to the next backward, are no reference to the optimiser."""
    optimizer = made(rule, penalty="hypersparse")
    for _ in range(5):
        for p in parameters(optimizer):
            p.grad = torch.ones_like(p)
        optimizer.sweep.add_penalty_grad_()
        optimizer.step()
        steady = list(optimizer._steady)
    assert steady
    optimizer.sweep.add_penalty_grad_()
    seen = [weakref.ref(parameters(optimizer)[0])]
    del optimizer, p
    assert all_freed(seen)


def test_a_removed_group_is_released_at_the_next_step(rule):
    optimizer = bound(made(rule, groups=2))
    removed = optimizer.param_groups.pop()
    seen = [weakref.ref(p) for p in removed["params"]]
    seen += [weakref.ref(t) for p in removed["params"] for t in optimizer.state.pop(p).values()]
    del removed
    step(optimizer, 3)
    assert len(optimizer._steady) == 1 and all_freed(seen)


def test_a_group_that_replaces_another_releases_it(rule):
    optimizer = bound(made(rule, groups=2))
    seen = [weakref.ref(p) for p in optimizer.param_groups[1]["params"]]
    removed = optimizer.param_groups.pop()  # kept, so that its id is not used again
    while removed["params"]:
        del optimizer.state[removed["params"].pop()]
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(5))]})
    for q in parameters(optimizer):
        q.grad = None
    optimizer.step()
    assert all_freed(seen)


def test_a_cleared_state_is_released_at_the_next_step(rule):
    optimizer = bound(made(rule))
    seen = [weakref.ref(t) for p in parameters(optimizer) for t in optimizer.state[p].values()]
    optimizer.state.clear()
    optimizer.zero_grad()
    optimizer.step()
    assert not optimizer._steady and all_freed(seen)


def test_a_loaded_state_is_released_at_once(rule):
    optimizer = bound(made(rule))
    saved = copy.deepcopy(optimizer.state_dict())
    seen = [weakref.ref(t) for p in parameters(optimizer) for t in optimizer.state[p].values()]
    optimizer.load_state_dict(saved)
    assert not optimizer._steady and all_freed(seen)


def test_after_release_a_module_is_converted_by_swapping_and_bound_again(rule):
    model, optimizer = linear(rule)
    bound(optimizer)
    optimizer.zero_grad()
    optimizer.release()
    assert not optimizer._steady
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.to(torch.float64)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert model.weight.dtype == torch.float64
    for seed in range(4, 7):
        step(optimizer, seed)
    assert optimizer._steady


def test_after_release_tensors_may_be_swapped(rule):
    optimizer = bound(made(rule))
    first = parameters(optimizer)[0]
    first.grad = None
    with pytest.raises(RuntimeError, match="use_count"):
        torch.utils.swap_tensors(first, nn.Parameter(torch.ones(6, 6)))
    optimizer.release()
    torch.utils.swap_tensors(first, nn.Parameter(torch.ones(6, 6)))
    assert torch.equal(first, torch.ones(6, 6))
    step(optimizer, 3)
    assert optimizer._steady
