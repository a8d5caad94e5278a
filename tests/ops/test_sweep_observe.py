"""sweep_observe_ and add_penalty_grad_ together are what regularized_sgd_ does in one sweep."""

import pytest
import torch

from sparse_ops.ops.add_penalty_grad import add_penalty_grad_
from sparse_ops.ops.regularized_sgd import regularized_sgd_
from sparse_ops.ops.sweep_observe import sweep_observe_

SIZES, SCOPES = [0, 1, 7, 17, 1000, 16384 + 3], [0, 1, -1, 0, 1, 0]
EPSILON = {torch.float32: 1.2e-7, torch.float64: 2.3e-16, torch.float16: 9.8e-4, torch.bfloat16: 7.9e-3}


def problem(dtype):
    rng = torch.Generator().manual_seed(0)
    weights, grads = ([torch.randn(n, generator=rng).to(dtype) for n in SIZES] for _ in range(2))
    bits = [torch.randint(0, 256, ((n + 7) // 8,), generator=rng, dtype=torch.uint8) for n in SIZES]
    coefficients = torch.tensor([[0.05, 0.02, 0.3, 3.7], [0.07, 0.01, 0.9, 1.7]], dtype=torch.float64)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    brackets = torch.tensor([[1.0, 1.5], [0.5, 0.75]], dtype=torch.float64)
    statistics = torch.zeros(2, 7, dtype=torch.float64)
    tables = coefficients, brackets, statistics, torch.full((2, 9000), float("nan"), dtype=wide)
    return weights, grads, bits, tables


def check_observe(dtype, masked):
    weights, _, bits, tables = problem(dtype)
    if masked:
        keep = [((b[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()[: len(w)].bool()
                for b, w in zip(bits, weights, strict=True)]  # fmt: skip
        expected = [torch.where(k, w, 0.0) for k, w in zip(keep, weights, strict=True)]
        for k, w in zip(keep, weights, strict=True):
            w[~k] = float("nan")
    else:
        expected = [w.clone() for w in weights]
    sweep_observe_(weights, bits if masked else [], SCOPES, *tables)
    for w, e in zip(weights, expected, strict=True):
        assert torch.equal(w, e)
        assert not torch.signbit(w[e == 0]).any()
    for row in range(2):
        u = torch.cat([e.double().abs() for e, scope in zip(expected, SCOPES, strict=True) if scope == row])
        s, (low, high) = tables[0][row, 2], tables[1][row]
        t, c = torch.tanh(s * u), 1 / torch.cosh(s * u) ** 2
        sums = torch.stack([u.sum(), t.sum(), (u * c).sum(), (u * u * t * c).sum()])
        relative = 1e-12 if dtype == torch.float64 else 1e-6
        torch.testing.assert_close(tables[2][row, :4], sums, rtol=relative, atol=0)
        inside = u[(u >= low) & (u < high)]
        assert tables[2][row, 4:].tolist() == [(u >= high).sum(), len(inside), len(u)]
        assert torch.equal(tables[3][row, : len(inside)].double().sort().values, inside.sort().values)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_observes(masked, backend):
    check_observe(torch.float32, masked)


@pytest.mark.parametrize("dtype", EPSILON, ids=str)
def test_observes_in_every_instruction_set(dtype, isa):
    check_observe(dtype, masked=True)
    check_observe(dtype, masked=False)


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


def test_are_lawful_torch_ops(backend):
    weights, grads, bits, tables = problem(torch.float32)
    torch.library.opcheck(torch.ops.sparse_ops.sweep_observe_.default, (weights, bits, SCOPES, *tables))
    arguments = (grads, weights, bits, SCOPES, tables[0], "hypersparse", None)
    torch.library.opcheck(torch.ops.sparse_ops.add_penalty_grad_.default, arguments)


def test_names_the_culprit():
    weights, grads, _, tables = problem(torch.float32)
    with pytest.raises(ValueError, match=r"weights\[0\] and weights\[1\] share memory"):
        sweep_observe_([weights[5], weights[5][3:]], [], [0, 0], *tables)
    with pytest.raises(ValueError, match=r"grads\[0\] is expanded, strides \(0,\) for \(1000,\)"):
        add_penalty_grad_([grads[1].expand(1000)], [weights[4]], [], [0], tables[0], penalty="l1")
    with pytest.raises(ValueError, match="6 weights but 5 scopes"):
        add_penalty_grad_(grads, weights, [], SCOPES[1:], tables[0], penalty="l1")
    with pytest.raises(TypeError, match=r"weights\[0\] is torch.int64"):
        sweep_observe_([torch.arange(3)], [], [0], *tables)


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
