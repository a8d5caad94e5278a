"""The ops of the sweep on the Triton kernels against their specification."""

import math

import pytest
import torch

pytest.importorskip("triton")

from sparse_ops import launch
from sparse_ops.ops.add_penalty_grad import add_penalty_grad_
from sparse_ops.ops.regularized_adamw import regularized_adamw_
from sparse_ops.ops.regularized_sgd import regularized_sgd_
from sparse_ops.ops.sweep_observe import sweep_observe_

SHAPES = [(64, 33), (5,), (3, 4, 5, 5), (40, 32)]
SCOPES = [0, -1, 1, 1]


def problem(device, dtype=torch.float32):
    rng = torch.Generator().manual_seed(1)
    tensors = [torch.randn(shape, generator=rng).to(device, dtype) for shape in SHAPES * 3]
    tensors[2] = tensors[2].to(memory_format=torch.channels_last)
    packed = [
        torch.randint(0, 256, ((math.prod(shape) + 7) // 8,), generator=rng, dtype=torch.uint8).to(device)
        for shape in SHAPES * 2
    ]
    packed[0], packed[7] = packed[0][:0], packed[7][:0]
    f64 = {"dtype": torch.float64, "device": device}
    coefficients = torch.tensor([[0.1, 0.02, 3.0, 0.5], [0.3, 0.01, 0.0, 0.0]], **f64)
    brackets = torch.tensor([[0.2, 0.3], [0.5, 0.5]], **f64)
    state = [SCOPES, coefficients, brackets, torch.zeros(2, 7, **f64), torch.full((2, 100), math.nan, device=device)]
    return tensors[:4], tensors[4:8], tensors[8:], packed[:4], packed[4:], state


def both(run, device, dtype=torch.float32):
    """The tensors after `run` on the specification and on the kernels."""
    results = []
    for name in ("reference", "triton"):
        parts = problem(device, dtype)
        with launch.forced(name):
            run(*parts)
        results.append(parts)
    return results


def compare(reference, triton, dtype=torch.float32):
    tolerance = {"rtol": 2**-7, "atol": 1e-5} if dtype == torch.bfloat16 else {"rtol": 2e-6, "atol": 1e-6}
    for want, got in zip(reference[:3], triton[:3], strict=True):
        for a, b in zip(want, got, strict=True):
            torch.testing.assert_close(b, a, **tolerance)
    want, got = reference[5][3], triton[5][3]
    if dtype == torch.float32:
        torch.testing.assert_close(got[:, :4], want[:, :4], rtol=1e-6, atol=1e-9)
        assert torch.equal(got[:, 4:], want[:, 4:])
        for r in range(2):
            torch.testing.assert_close(triton[5][4][r].sort().values, reference[5][4][r].sort().values, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("penalty", ["none", "growing_l2", "hypersparse"])
def test_regularized_sgd(penalty, dtype, device):
    def run(w, g, m, masks, groups, state):
        for first in (True, False):
            regularized_sgd_(w, g, m, masks, groups, *state, penalty=penalty, lr=0.1, momentum=0.9, first_step=first)

    compare(*both(run, device, dtype), dtype)


def test_sgd_without_momentum_and_masks(device):
    def run(w, g, m, masks, groups, state):
        regularized_sgd_(w, g, [], [], [], *state, penalty="l1", lr=0.1, weight_decay=0.1)

    compare(*both(run, device))


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("penalty", ["none", "hypersparse"])
def test_regularized_adamw(penalty, amsgrad, device):
    def run(w, g, m, masks, groups, state):
        v, largest = ([torch.full_like(t, x) for t in w] for x in (0.3, 0.25))
        steps = [torch.tensor(float(3 + i), device=device) for i in range(len(w))]
        for _ in range(2):
            regularized_adamw_(
                w, g, m, v, largest if amsgrad else [], steps, masks, groups, *state, penalty=penalty, lr=0.1,
                grad_scale=torch.full((), 4.0, device=device),
            )  # fmt: skip
        m += v + largest

    compare(*both(run, device))


def test_sweep_observe(device):
    compare(*both(lambda w, g, m, masks, groups, state: sweep_observe_(w, masks, *state), device))


@pytest.mark.parametrize("penalty", ["none", "l1", "l2", "growing_l2", "hypersparse"])
def test_add_penalty_grad(penalty, device):
    def run(w, g, m, masks, groups, state):
        add_penalty_grad_(
            g, w, groups, SCOPES, state[1], penalty=penalty, grad_scale=torch.full((), 4.0, device=device)
        )

    compare(*both(run, device))


def test_no_weights_at_all(device):
    w, _, _, _, _, (_, *tables) = problem(device)
    with launch.forced("triton"):
        sweep_observe_([w[0][:0]], [], [0], *tables)
    assert not tables[2].any()
