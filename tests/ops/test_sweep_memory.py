"""Tensors whose memory is not what they hold, as operands of the sweep: zeros without memory, negative views."""

import pytest
import torch

from sparse_ops.ops.regularized_adamw import regularized_adamw_
from sparse_ops.ops.regularized_sgd import regularized_sgd_
from sparse_ops.ops.sweep_observe import sweep_observe_

pytestmark = pytest.mark.usefixtures("no_grad")
SHAPES = [(4, 3), (5,), (1,)]
STATES = {
    regularized_sgd_: ["momenta"],
    regularized_adamw_: ["exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"],
    sweep_observe_: [],
}


@pytest.fixture
def no_grad():
    """As in an optimiser's step, where the ops are plain functions; else torch's dispatcher meets the tensors first."""
    with torch.no_grad():
        yield


def problem(op):
    """The op's arguments, without penalty and scopes."""
    rng = torch.Generator().manual_seed(0)
    p = {name: [torch.rand(shape, generator=rng) for shape in SHAPES] for name in ["weights", "grads", *STATES[op]]}
    p |= {"masks": [], "groups": [], "scopes": [-1] * len(SHAPES), "candidates": torch.zeros(0, 1)}
    names = ("coefficients", 4), ("brackets", 2), ("statistics", 7)
    p |= {name: torch.zeros(0, n, dtype=torch.float64) for name, n in names}
    if op is sweep_observe_:
        del p["grads"], p["groups"]
        return p
    if op is regularized_adamw_:
        p["steps"] = [torch.tensor(3.0) for _ in SHAPES]
    return p | {"penalty": "none", "lr": 0.1} | ({"momentum": 0.9} if op is regularized_sgd_ else {})


def negative_view(t):
    """Equal to t, but what lies in memory is -t."""
    view = torch._neg_view(-t)
    assert torch.equal(view, t) and view.is_neg()
    return view


def zeros(t):
    made = torch._efficientzerotensor(t.shape)
    assert made._is_zerotensor()
    return made


@pytest.mark.parametrize("i", range(len(SHAPES)))
@pytest.mark.parametrize("op", [regularized_sgd_, regularized_adamw_])
def test_a_gradient_of_zeros_without_memory_is_zero(op, i, backend):
    a, b = problem(op), problem(op)
    a["grads"][i] = zeros(a["grads"][i])
    b["grads"][i] = torch.zeros(SHAPES[i])
    op(**a), op(**b)
    for name in ["weights", *STATES[op]]:
        for x, y in zip(a[name], b[name], strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("i", range(len(SHAPES)))
@pytest.mark.parametrize("op", [regularized_sgd_, regularized_adamw_])
def test_a_gradient_that_is_a_negative_view_counts_with_its_sign(op, i, backend):
    a, b = problem(op), problem(op)
    a["grads"][i] = negative_view(a["grads"][i])
    op(**a), op(**b)
    for name in ["weights", *STATES[op]]:
        for x, y in zip(a[name], b[name], strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("made, message", [(negative_view, "a negative view"), (zeros, "a tensor of zeros")])
@pytest.mark.parametrize("op", STATES)
def test_what_is_written_has_to_lie_in_memory(op, made, message, backend):
    for name in ["weights", *STATES[op]]:
        p = problem(op)
        before = [[t.clone() for t in p[other]] for other in ["weights", *STATES[op]]]
        good, p[name][1] = p[name][1], made(p[name][1])
        with pytest.raises(ValueError, match=rf"{op.__name__}: {name}\[1\] is {message}.*, shape \(5,\)"):
            op(**p)
        p[name][1] = good
        for old, other in zip(before, ["weights", *STATES[op]], strict=True):
            assert all(map(torch.equal, old, p[other]))


@pytest.mark.parametrize("op", [regularized_sgd_, regularized_adamw_])
def test_a_sparse_gradient_is_named(op):
    p = problem(op)
    p["grads"][0] = p["grads"][0].to_sparse()
    with pytest.raises(ValueError, match=rf"{op.__name__}: grads\[0\] is torch.sparse_coo, expected a strided tensor"):
        op(**p)


@pytest.mark.parametrize("op", [regularized_sgd_, regularized_adamw_])
def test_a_scale_of_eight_bits_is_named(op):
    scale = torch.ones(()).to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=rf"{op.__name__}: grad_scale is torch.float8_e4m3fn"):
        op(**problem(op), grad_scale=scale)
