"""kth_magnitude against a full sort: the bits must be the same."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparse_ops.ops.kth_magnitude import kth_magnitude

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
QUIET = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


def expected(tensors, k):
    """Sorts in float64 (exact for every dtype), not with the reference's own promotion."""
    dtype = tensors[0].dtype
    for t in tensors:
        dtype = torch.promote_types(dtype, t.dtype)
    return torch.cat([t.double().abs().flatten() for t in tensors]).sort().values[k - 1].to(dtype)


def assert_same_bits(actual, wanted):
    assert actual.dtype == wanted.dtype
    assert actual.shape == ()
    assert actual == wanted, f"{actual.item()!r} instead of {wanted.item()!r}"
    assert not torch.signbit(actual)


def check_random(data, strategy):
    tensors = data.draw(strategy)
    n = sum(t.numel() for t in tensors)
    k = data.draw(st.sampled_from([1, n, (n + 1) // 2]) | st.integers(1, n))
    assert_same_bits(kth_magnitude(tensors, k), expected(tensors, k))


@settings(max_examples=1000, **QUIET)
@given(data=st.data())
def test_random_lists_on_every_instruction_set(data, isa, adversarial_weights):
    check_random(data, adversarial_weights)


@settings(max_examples=30, **QUIET)
@given(data=st.data())
def test_random_lists_on_every_backend(data, backend, adversarial_weights):
    check_random(data, adversarial_weights)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_lists_take_the_sampled_path(dtype, isa, adversarial_values):
    kinds, values = adversarial_values
    rng = torch.Generator().manual_seed(1)
    for kind in kinds:
        t = values(200_003, kind, dtype, rng)
        parts = [t[:70_000], t[70_000:70_001], t[70_001:]]
        ordered = t.double().abs().sort().values.to(dtype)
        for k in (1, 2, 1000, 100_000, 196_000, 200_002, 200_003):
            assert_same_bits(kth_magnitude(parts, k), ordered[k - 1])


@pytest.mark.parametrize("lie", [0.0, 1e30], ids=["sample too small", "sample too large"])
def test_a_sample_that_lies_costs_passes_but_no_exactness(lie, isa):
    n = 1 << 20
    t = torch.randn(n, generator=torch.Generator().manual_seed(2))
    samples = n // 256
    j = torch.arange(samples)
    jitter = torch.tensor([(i * 0x9E3779B97F4A7C15 % 2**64 >> 33) % 256 for i in range(samples)])
    t[j * 256 + jitter] = lie  # exactly where the selection looks
    for k in (n // 3, n // 2, n - samples - 1):
        assert_same_bits(kth_magnitude([t], k), expected([t], k))


def test_any_number_of_threads(isa):
    t = torch.randn(300_000, generator=torch.Generator().manual_seed(3))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert_same_bits(kth_magnitude([t], 123_456), expected([t], 123_456))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_nan_gives_nan(dtype, device, backend):
    t = torch.randn(5000, device=device).to(dtype)
    t[4321] = -torch.nan
    for k in (1, 5000):
        out = kth_magnitude([torch.ones(3, dtype=dtype, device=device), t], k)
        assert out.isnan() and out.dtype == dtype


def test_parameters_and_generators(device, backend):
    model = torch.nn.Linear(3, 4, device=device)
    out = kth_magnitude((p for p in model.parameters()), 16)
    assert not out.requires_grad
    assert out == max(p.detach().abs().max() for p in model.parameters())


def test_is_a_lawful_torch_op(device, backend):
    tensors = [torch.randn(6, 5, device=device)[:, ::2], torch.randn(3, device=device, dtype=torch.float64)]
    torch.library.opcheck(torch.ops.sparse_ops.kth_magnitude.default, (tensors, 7))


def test_names_the_culprit(device):
    t = torch.randn(4, device=device)
    for k in (0, 5, -1):
        with pytest.raises(ValueError, match=f"k is {k}, expected 1 to 4"):
            kth_magnitude([t], k)
    with pytest.raises(ValueError, match="k is 1, expected 1 to 0"):
        kth_magnitude([t[:0], t[:0]], 1)
    with pytest.raises(ValueError, match="tensors is an empty list"):
        kth_magnitude([], 1)
    with pytest.raises(TypeError, match=r"tensors\[1\] is torch.int64"):
        kth_magnitude([t, torch.arange(3, device=device)], 1)
    with pytest.raises(TypeError, match="one tensor of shape"):
        kth_magnitude(t, 1)
    with pytest.raises(TypeError, match=r"tensors\[0\] is 1.5"):
        kth_magnitude([1.5], 1)
    with pytest.raises(ValueError, match=r"tensors\[0\] is on .*, tensors\[1\] on meta"):
        kth_magnitude([t, t.to("meta")], 1)
    for k in (1.0, 1.5, None, "1"):
        with pytest.raises(TypeError, match=f"k is {k!r}, expected an integer"):
            kth_magnitude([torch.ones(4, device=device)], k)
