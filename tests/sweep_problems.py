"""Weights, gradients, tables and the bounds of the sums for tests of the sweep's ops."""

import torch

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


def check_sums(found, expected, dtype):
    """N and A to 1e-6; T1 meets ds/s, T2 its square, and |ds/s| is 0.01 at most: a polynomial's error will do."""
    for i, bound in enumerate([1e-12] * 4 if dtype == torch.float64 else [1e-6, 1e-6, 5e-6, 2e-4]):
        torch.testing.assert_close(found[i], expected[i], rtol=bound, atol=0)
