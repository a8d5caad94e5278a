"""add_penalty_grad_ against the update of regularized_sgd_ in float64, and far from zero against sech^2 itself."""

import pytest
import torch
from sweep_problems import EPSILON, SCOPES, problem

from sparse_ops.ops.add_penalty_grad import add_penalty_grad_
from sparse_ops.ops.regularized_sgd import regularized_sgd_


def check_penalty(dtype, penalty):
    """A plain SGD step with learning rate 1 on the weights themselves moves them by the gradient."""
    weights, grads, bits, tables = problem(dtype)
    strided = [torch.stack([g, g], 1)[:, 0] for g in grads]  # gradients may have gaps
    scale = torch.tensor(4.0)
    add_penalty_grad_(strided, weights, bits, SCOPES, tables[0], penalty=penalty, grad_scale=scale)
    moved = [w.double().clone() for w in weights]
    wide = [t.double().clone() for t in tables]
    zeros = [torch.zeros_like(w) for w in moved]
    regularized_sgd_(moved, zeros, [], [], bits, SCOPES, *wide, penalty=penalty, lr=1.0)
    for i, (g, w, m) in enumerate(zip(grads, weights, moved, strict=True)):
        expected = g.double() + 4 * (w.double() - m)
        if SCOPES[i] < 0:
            assert torch.equal(strided[i], g)
        close = {"rtol": EPSILON[dtype], "atol": max(4e-7 * (dtype != torch.float64), 2e-15)}
        torch.testing.assert_close(strided[i].double(), expected, **close)


@pytest.mark.parametrize("penalty", ["none", "l1", "l2", "growing_l2", "hypersparse"])
def test_adds_the_penalty(penalty, backend):
    check_penalty(torch.float32, penalty)


@pytest.mark.parametrize("dtype", EPSILON, ids=str)
def test_adds_the_penalty_in_every_instruction_set(dtype, isa):
    for penalty in ("l1", "growing_l2", "hypersparse"):
        check_penalty(dtype, penalty)


def test_is_a_lawful_torch_op(backend):
    weights, grads, bits, tables = problem(torch.float32)
    arguments = (grads, weights, bits, SCOPES, tables[0], "hypersparse", None)
    torch.library.opcheck(torch.ops.sparse_ops.add_penalty_grad_.default, arguments)


def test_names_the_culprit():
    weights, grads, _, tables = problem(torch.float32)
    with pytest.raises(ValueError, match=r"grads\[0\] is expanded, strides \(0,\) for \(1000,\)"):
        add_penalty_grad_([grads[1].expand(1000)], [weights[4]], [], [0], tables[0], penalty="l1")
    with pytest.raises(ValueError, match="6 weights but 5 scopes"):
        add_penalty_grad_(grads, weights, [], SCOPES[1:], tables[0], penalty="l1")


def test_far_weights_feel_the_penalty_and_not_their_neighbours(isa):
    """sech^2 keeps its relative accuracy down to float32's end, and each element's bits in any company."""
    w = torch.logspace(-6, 1.62, 5000)  # s |w| up to 41.7: sech^2 reaches 2.4e-36
    coefficients = torch.tensor([[1.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    order = torch.randperm(len(w), generator=torch.Generator().manual_seed(0))
    gradients = []
    for weights in (w, w[order]):
        gradients.append(torch.zeros_like(w))
        add_penalty_grad_([gradients[-1]], [weights], [], [0], coefficients, penalty="hypersparse")
    torch.testing.assert_close(gradients[0].double(), 1 / torch.cosh(w.double()) ** 2, rtol=1e-5, atol=0)
    assert torch.equal(gradients[0][order], gradients[1])
