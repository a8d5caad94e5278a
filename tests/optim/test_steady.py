"""Steps whose lists C++ has kept give the bits of steps that hand all lists over, whatever changed between them."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

from sparse_ops import extension, launch, optim
from sparse_ops.masks import PackedMask
from sparse_ops.optim import Sweep, attach

pytestmark = pytest.mark.skipif(extension.failure() is not None, reason="needs the C++ kernels")
SHAPES = [(6, 6), (40, 30), (7,), (8, 4, 3, 3)]


def made(steady, groups=1, penalty=None, **settings):
    rng = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=rng)) for shape in SHAPES]
    some = [{"params": params[i::groups]} for i in range(groups)]
    optimizer = optim.SGD(some, lr=0.1, momentum=0.9, weight_decay=1e-3, **settings)
    if penalty:
        sweep = Sweep({f"w{i}": p for i, p in enumerate(params) if p.dim() > 1})
        sweep.track(0.9)
        sweep.set_penalty(penalty, 1e-3)
        attach(optimizer, sweep)
    if not steady:
        optimizer._bind = lambda group, bucket: None
    return optimizer


def parameters(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def step(optimizer, seed):
    rng = torch.Generator().manual_seed(seed)
    for p in parameters(optimizer):
        p.grad = torch.randn(p.shape, generator=rng).to(p.dtype)
    optimizer.step()


def everything(optimizer):
    buffers = [optimizer.state[p].get("momentum_buffer") for p in parameters(optimizer)]
    return [*(p.detach() for p in parameters(optimizer)), *(b for b in buffers if b is not None)]


def assert_same(a, b):
    for x, y in zip(everything(a), everything(b), strict=True):
        assert x.dtype == y.dtype and torch.equal(x, y)


def replace_data(optimizer):
    for p in parameters(optimizer):
        p.data = p.data.clone() * 0.5


def transpose_in_place(optimizer):
    square = parameters(optimizer)[0]
    square.data = square.data.t()


def narrow(optimizer):
    p = next(p for p in parameters(optimizer) if p.dim() == 1)
    p.data = p.data[:3]
    optimizer.state[p]["momentum_buffer"] = torch.ones(3)


def halve(optimizer):
    for p in parameters(optimizer):
        p.grad = None
        p.data = p.data.bfloat16()


def load(optimizer):
    state = copy.deepcopy(optimizer.state_dict())
    for entry in state["state"].values():
        entry["momentum_buffer"] *= 2
    optimizer.load_state_dict(state)


def new_buffers(optimizer):
    for p in parameters(optimizer):
        optimizer.state[p]["momentum_buffer"] = torch.full_like(p, 0.25).detach()


def exchange_states(optimizer):
    p, q = parameters(optimizer)[:2]
    optimizer.state[p], optimizer.state[q] = (
        {"momentum_buffer": torch.ones_like(p).detach()},
        {"momentum_buffer": torch.ones_like(q).detach()},
    )


def lose_a_buffer(optimizer):
    del optimizer.state[parameters(optimizer)[0]]


def forget(optimizer):
    optimizer.state.clear()


def grow(optimizer):
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(5))], "weight_decay": 0.0})


def set_rates(optimizer):
    for group in optimizer.param_groups:
        group["lr"], group["momentum"], group["weight_decay"], group["maximize"] = 0.03, 0.5, 0.0, True


def no_momentum(optimizer):
    optimizer.param_groups[0]["momentum"] = 0.0


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
@pytest.mark.parametrize(
    "change",
    [replace_data, transpose_in_place, narrow, halve, load, new_buffers, exchange_states, lose_a_buffer, forget, grow,
     set_rates, no_momentum, other_parameter, move_a_state, swap],
)  # fmt: skip
def test_a_change_between_two_steps_is_seen(change, groups):
    a, b = made(True, groups), made(False, groups)
    for seed in range(3):
        for optimizer in (a, b):
            step(optimizer, seed)
    assert len(a._steady) == groups and not b._steady
    for optimizer in (a, b):
        change(optimizer)
        for seed in range(3, 7):
            step(optimizer, seed)
    assert_same(a, b)


@pytest.mark.parametrize("settings", [{"dampening": 0.3}, {"nesterov": True}, {"maximize": True}])
def test_the_rules_are_those_of_torch(settings):
    a = made(True, **settings)
    theirs = [nn.Parameter(p.detach().clone()) for p in parameters(a)]
    b = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=1e-3, **settings)
    for seed in range(6):
        step(a, seed)
        step(b, seed)
    assert a._steady
    for p, q in zip(parameters(a), theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("penalty", ["l2", "hypersparse"])
def test_masks_and_penalties_that_change(penalty):
    a, b = made(True, penalty=penalty), made(False, penalty=penalty)
    for optimizer in (a, b):
        for seed in range(12):
            if seed == 4:
                masks = {name: torch.rand(w.shape, generator=torch.Generator().manual_seed(1)) < 0.5
                         for name, w in optimizer.sweep.weights.items()}  # fmt: skip
                optimizer.sweep.set_masks({name: PackedMask.from_dense(keep) for name, keep in masks.items()})
            if seed == 7:
                optimizer.sweep.set_masks({})
            if seed == 9:
                optimizer.sweep.set_penalty("l1", 1e-3)
            step(optimizer, seed)
    assert a._steady
    assert_same(a, b)
    assert torch.equal(a.sweep.report, b.sweep.report)
    assert torch.equal(a.sweep.coefficients, b.sweep.coefficients)


def test_gradients_that_come_and_go():
    a, b = made(True), made(False)
    for optimizer in (a, b):
        for seed in range(9):
            rng = torch.Generator().manual_seed(seed)
            for i, p in enumerate(parameters(optimizer)):
                p.grad = None if seed in (4, 5) and i == 2 else torch.randn(p.shape, generator=rng)
            parameters(optimizer)[3].grad = parameters(optimizer)[3].grad.to(memory_format=torch.channels_last)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    assert_same(a, b)


def test_gradients_that_lie_otherwise_are_not_offered_for_ever():
    a = made(True)
    for seed in range(12):
        rng = torch.Generator().manual_seed(seed)
        for p in parameters(a):
            p.grad = torch.randn(p.shape, generator=rng)
        parameters(a)[3].grad = parameters(a)[3].grad.to(memory_format=torch.channels_last)
        a.step()
    assert not a._steady


def test_errors_are_still_raised():
    optimizer = made(True)
    for seed in range(3):
        step(optimizer, seed)
    before = [x.clone() for x in everything(optimizer)]
    first = parameters(optimizer)[0]
    first.grad = torch.randn(6, 6).to_sparse()
    with pytest.raises(ValueError, match="sparse"):
        optimizer.step()
    step(optimizer, 3)
    step(optimizer, 4)
    assert optimizer._steady
    optimizer.param_groups[0]["nesterov"], optimizer.param_groups[0]["dampening"] = True, 0.5
    with pytest.raises(ValueError, match="nesterov"):
        optimizer.step()
    assert not torch.equal(before[0], first)


def test_found_inf_and_scale():
    a, b = made(True), made(False)
    for optimizer in (a, b):
        for seed in range(6):
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(float(seed == 4))
            step(optimizer, seed)
    assert a._steady
    assert_same(a, b)


def test_versions_are_counted_and_a_stale_backward_raises():
    optimizer = made(True)
    for seed in range(3):
        step(optimizer, seed)
    p = parameters(optimizer)[1]
    loss = (p * p).sum()
    version, buffer = p._version, optimizer.state[p]["momentum_buffer"]
    buffer_version = buffer._version
    optimizer.step()
    assert p._version > version and buffer._version > buffer_version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_copies_and_pickles_are_bound_anew():
    a = made(True)
    for seed in range(3):
        step(a, seed)
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


def test_nothing_is_kept_alive():
    optimizer = made(True)
    for seed in range(3):
        step(optimizer, seed)
    assert optimizer._steady
    storages = [weakref.ref(p) for p in parameters(optimizer)]
    del optimizer
    gc.collect()
    assert all(ref() is None for ref in storages)


def test_other_backends_and_watchers_are_served():
    optimizer = made(True)
    for seed in range(3):
        step(optimizer, seed)
    bound = next(iter(optimizer._steady.values())).bound
    with launch.forced("reference"):
        step(optimizer, 3)
    assert not optimizer._steady
    step(optimizer, 4)
    assert next(iter(optimizer._steady.values())).bound is not bound


def test_parameters_that_conversions_swap_are_not_bound():
    """Conversions of a module may swap its tensors, which must then have no other owner."""
    model = nn.Linear(4, 4)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
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
def test_parameters_that_refer_to_the_optimiser_are_freed(refer):
    optimizer = made(True)
    for p in parameters(optimizer):
        refer(p, optimizer)
    for seed in range(5):
        step(optimizer, seed)
    assert not optimizer._steady
    seen = weakref.ref(parameters(optimizer)[0])
    del optimizer, p
    gc.collect()
    assert seen() is None


def test_parameters_with_a_hook_after_accumulation_are_not_bound():
    optimizer = made(True)
    handle = parameters(optimizer)[0].register_post_accumulate_grad_hook(lambda _: None)
    for seed in range(4):
        step(optimizer, seed)
    assert not optimizer._steady
    handle.remove()
    step(optimizer, 4)
    assert optimizer._steady


def test_a_penalty_added_before_the_step_is_bound_and_freed():
    """The sweep's own hooks, which last from that call to the next backward, are no reference to the optimiser."""
    optimizer = made(True, penalty="hypersparse")
    for _ in range(5):
        for p in parameters(optimizer):
            p.grad = torch.ones_like(p)
        optimizer.sweep.add_penalty_grad_()
        optimizer.step()
        bound = [steady.bound for steady in optimizer._steady.values()]
    assert bound
    optimizer.sweep.add_penalty_grad_()
    seen = weakref.ref(parameters(optimizer)[0])
    del optimizer, p, bound
    gc.collect()
    assert seen() is None


def test_a_removed_group_is_released_at_the_next_step():
    optimizer = made(True, groups=2)
    for seed in range(3):
        step(optimizer, seed)
    assert len(optimizer._steady) == 2
    removed = optimizer.param_groups.pop()
    seen = [weakref.ref(p) for p in removed["params"]]
    seen += [weakref.ref(optimizer.state.pop(p)["momentum_buffer"]) for p in removed["params"]]
    del removed
    step(optimizer, 3)
    gc.collect()
    assert len(optimizer._steady) == 1 and all(ref() is None for ref in seen)


def test_a_group_that_replaces_another_releases_it():
    optimizer = made(True, groups=2)
    for seed in range(3):
        step(optimizer, seed)
    seen = [weakref.ref(p) for p in optimizer.param_groups[1]["params"]]
    removed = optimizer.param_groups.pop()  # kept, so that its id is not used again
    while removed["params"]:
        del optimizer.state[removed["params"].pop()]
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(5))]})
    for q in parameters(optimizer):
        q.grad = None
    optimizer.step()
    gc.collect()
    assert all(ref() is None for ref in seen)


def test_a_cleared_state_is_released_at_the_next_step():
    optimizer = made(True)
    for seed in range(3):
        step(optimizer, seed)
    assert optimizer._steady
    seen = [weakref.ref(optimizer.state[p]["momentum_buffer"]) for p in parameters(optimizer)]
    optimizer.state.clear()
    optimizer.zero_grad()
    optimizer.step()
    gc.collect()
    assert not optimizer._steady and all(ref() is None for ref in seen)


def test_more_groups_than_a_sweep_remembers_otherwise_stay_bound():
    rng = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(8, 8, generator=rng)) for _ in range(40)]
    optimizer = optim.SGD([{"params": [p]} for p in params], lr=0.1, momentum=0.9)
    sweep = Sweep({f"w{i}": p for i, p in enumerate(params)})
    sweep.track(0.9)
    sweep.set_penalty("hypersparse", 1e-3)
    attach(optimizer, sweep)
    for seed in range(3):
        step(optimizer, seed)
    bound = [steady.bound for steady in optimizer._steady.values()]
    for seed in range(3, 6):
        step(optimizer, seed)
    assert len(bound) == 40
    assert all(steady.bound is kept for steady, kept in zip(optimizer._steady.values(), bound, strict=True))


def test_a_sweep_remembers_no_more_lists_than_can_be_in_use():
    optimizer = made(True, penalty="l2")
    sweep = optimizer.sweep
    params = parameters(optimizer)
    for seed in range(100):
        sweep.operands(params[: 1 + seed % 4] * (1 + seed // 4))
    assert len(sweep._operands) < 32
    latest = sweep.operands(params)
    sweep.operands(params[:1])
    assert sweep.operands(params) is latest


def test_one_group_of_odd_gradients_leaves_the_others_bound():
    a = made(True, groups=2)
    for seed in range(12):
        rng = torch.Generator().manual_seed(seed)
        for p in parameters(a):
            p.grad = torch.randn(p.shape, generator=rng)
        odd = next(p for p in parameters(a) if p.dim() == 4)
        odd.grad = odd.grad.to(memory_format=torch.channels_last)
        a.step()
    assert [id(group) in a._steady for group in a.param_groups] == [True, False]


def test_odd_gradients_now_and_then_do_not_end_it():
    a, b = made(True), made(False)
    for optimizer in (a, b):
        odd = parameters(optimizer)[3]
        for seed in range(20):
            rng = torch.Generator().manual_seed(seed)
            for p in parameters(optimizer):
                p.grad = torch.randn(p.shape, generator=rng)
            if seed % 4 == 3:
                odd.grad = odd.grad.to(memory_format=torch.channels_last)
            optimizer.step()
    assert a._steady
    assert_same(a, b)


def test_odd_gradients_that_end_are_found_out():
    a = made(True)
    for seed in range(100):
        rng = torch.Generator().manual_seed(seed)
        for p in parameters(a):
            p.grad = torch.randn(p.shape, generator=rng)
        if seed < 10:
            parameters(a)[3].grad = parameters(a)[3].grad.to(memory_format=torch.channels_last)
        a.step()
    assert a._steady


def test_after_release_a_module_is_converted_by_swapping_and_bound_again():
    model = nn.Linear(4, 4)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for seed in range(4):
        step(optimizer, seed)
    assert optimizer._steady
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


def test_after_release_tensors_may_be_swapped():
    optimizer = made(True)
    for seed in range(3):
        step(optimizer, seed)
    first = parameters(optimizer)[0]
    first.grad = None
    with pytest.raises(RuntimeError, match="use_count"):
        torch.utils.swap_tensors(first, nn.Parameter(torch.ones(6, 6)))
    optimizer.release()
    torch.utils.swap_tensors(first, nn.Parameter(torch.ones(6, 6)))
    assert torch.equal(first, torch.ones(6, 6))
    step(optimizer, 3)
    assert optimizer._steady
