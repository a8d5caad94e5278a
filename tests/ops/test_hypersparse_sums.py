"""hypersparse_sums, and through it the vector tanh and sech^2, against float64."""

import pytest
import torch

from sparse_ops.ops.hypersparse_sums import hypersparse_sums

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def exact(weights, scale):
    a = torch.cat([w.double().flatten() for w in weights]).abs()
    x = scale.double() * a
    e = torch.exp(-2 * x)
    c = 4 * e / (1 + e) ** 2
    return torch.stack([a.sum(), x.tanh().sum(), (a * c).sum(), (a * a * x.tanh() * c).sum()])


def check(weights, scale, exact_sum=1e-13):
    scale = torch.tensor(scale, dtype=torch.float64, device=weights[0].device)
    double = all(w.dtype == torch.float64 for w in weights)
    actual, wanted = hypersparse_sums(weights, scale), exact(weights, scale)
    assert actual.dtype == torch.float64
    # tanh and sech^2 each err by less than 6 units of 2^-24 in float32; s is rounded once, the summands twice
    torch.testing.assert_close(actual, wanted, rtol=1e-12 if double else 6e-7, atol=0)
    torch.testing.assert_close(actual[0], wanted[0], rtol=exact_sum, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 7, 16, 33, 3000])
def test_against_float64(n, dtype, device, backend):
    rng = torch.Generator().manual_seed(n)
    weights = [torch.randn(n, generator=rng).to(device, dtype), torch.randn(2, 3, generator=rng).to(device, dtype).t()]
    wide = backend != "triton" or dtype == torch.float64
    check(weights, 0.9, exact_sum=1e-13 if wide else 2e-7)  # the kernel adds 8 neighbours in float32, then compensates


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(dtype, isa):
    rng = torch.Generator().manual_seed(0)
    for n in (1, 5, 31, 2049, 200_000):
        check([torch.randn(n, generator=rng).to(dtype), torch.randn(n // 2, generator=rng)], 1.1)


def test_every_magnitude_has_its_tanh_and_sech2(isa):
    """One weight at a time, s = 1: from the smallest denormal to the end of sech^2 in float32."""
    x = torch.cat([torch.logspace(-45, -2, 300, dtype=torch.float64).float(), torch.linspace(0.01, 53, 500)])
    one = torch.tensor(1.0, dtype=torch.float64)
    sums = torch.stack([hypersparse_sums([u[None]], one) for u in x])
    e = torch.exp(-2 * x.double())
    tiny = torch.finfo(torch.float32).smallest_normal * 2**-23
    torch.testing.assert_close(sums[:, 0], x.double(), rtol=0, atol=0)
    torch.testing.assert_close(sums[:, 1], x.double().tanh(), rtol=3e-7, atol=0.51 * tiny)
    c = 4 * e / (1 + e) ** 2
    torch.testing.assert_close(sums[:, 2], x.double() * c, rtol=6e-7, atol=60 * tiny)
    assert sums[0, 1] > 0 and sums[-20, 2] > 0  # nothing is flushed


@pytest.mark.parametrize("factor", [1e-42, 1e-30, 1e30])
def test_any_scale(factor, isa):
    """tanh(s|w|) depends on s|w| alone, also where s is beyond float32."""
    w = torch.randn(1000, generator=torch.Generator().manual_seed(1)) * factor
    actual = hypersparse_sums([w], torch.tensor(0.7 / factor, dtype=torch.float64))
    torch.testing.assert_close(actual[1], torch.tanh(0.7 / factor * w.double().abs()).sum(), rtol=3e-7, atol=0)


def test_same_bits_for_any_number_of_threads(isa):
    w = [torch.randn(300_001, generator=torch.Generator().manual_seed(2)), torch.ones(5)]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(hypersparse_sums(w, torch.tensor(2.0, dtype=torch.float64)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_is_a_lawful_torch_op(device, backend):
    args = ([torch.randn(6, 5, device=device)[:, ::2]], torch.tensor(1.5, dtype=torch.float64, device=device))
    torch.library.opcheck(torch.ops.sparse_ops.hypersparse_sums.default, args)


def test_names_the_culprit(device):
    w = torch.randn(3, device=device)
    with pytest.raises(ValueError, match=r"scale is torch.float32 \(\)"):
        hypersparse_sums([w], torch.tensor(1.0, device=device))
    with pytest.raises(TypeError, match=r"weights\[0\] is torch.int64"):
        hypersparse_sums([w.long()], torch.tensor(1.0, dtype=torch.float64, device=device))
    with pytest.raises(ValueError, match="weights is an empty list"):
        hypersparse_sums([], torch.tensor(1.0, dtype=torch.float64, device=device))
