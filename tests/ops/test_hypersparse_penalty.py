"""hypersparse_penalty and hypersparse_loss against autograd through the literal formula in float64."""

import warnings

import pytest
import torch

from sparse_ops.ops.hypersparse_loss import hypersparse_loss
from sparse_ops.ops.hypersparse_penalty import hypersparse_penalty
from sparse_ops.reference import hypersparse_penalty as reference

# the norm-wise relative error of a gradient: float32 arithmetic, then one rounding to the weight's own format
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}
SHAPES = [(40, 30), (16, 3, 5, 5), (7,), (1,)]


def random_weights(dtype, device, seed=0, scale=0.05):
    """Laplace-like weights with some zeros, one tensor in channels_last, one with gaps."""
    rng = torch.Generator().manual_seed(seed)
    weights = [scale * torch.randn(s, generator=rng, dtype=torch.float64) ** 3 for s in SHAPES]
    weights[0][3] = 0.0
    weights = [w.to(device, dtype) for w in weights]
    weights[1] = weights[1].to(memory_format=torch.channels_last)
    weights.append(torch.randn(12, 8, generator=rng).to(device, dtype)[:, ::2])
    return [w.requires_grad_() for w in weights]


def gradients(value, weights):
    return torch.autograd.grad(value, weights)


def reference_gradients(weights, sparsity):
    wide = [w.detach().double().requires_grad_() for w in weights]
    return gradients(reference.hypersparse_loss(wide, sparsity), wide)


def relative_error(actual, wanted):
    difference = torch.cat([(a.double() - w).flatten() for a, w in zip(actual, wanted, strict=True)])
    return (difference.norm() / torch.cat([w.flatten() for w in wanted]).norm()).item()


def check_loss(dtype, device, sparsity, seed=0, scale=0.05):
    weights = random_weights(dtype, device, seed, scale)
    value = hypersparse_loss(weights, sparsity)
    assert value == 0 and value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    actual, wanted = gradients(value, weights), reference_gradients(weights, sparsity)
    assert all(a.dtype == w.dtype and a.shape == w.shape for a, w in zip(actual, weights, strict=True))
    assert relative_error(actual, wanted) <= TOLERANCE[dtype]
    assert (actual[0][3] == 0).all()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sparsity", [0.1, 0.98])
def test_loss_gradient(sparsity, dtype, device, backend):
    check_loss(dtype, device, sparsity)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_loss_gradient_on_every_instruction_set(dtype, isa):
    for seed, sparsity in enumerate([0.05, 0.5, 0.9, 0.995]):
        check_loss(dtype, torch.device("cpu"), sparsity, seed)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e25])
def test_loss_gradient_of_tiny_and_huge_weights(scale, isa):
    check_loss(torch.float32, torch.device("cpu"), 0.9, scale=scale)


def test_a_large_network(isa):
    w = torch.randn(400_000, generator=torch.Generator().manual_seed(5)).requires_grad_()
    actual = gradients(3.0 * hypersparse_loss([w], 0.95), [w])
    assert relative_error([a / 3 for a in actual], reference_gradients([w], 0.95)) < 1e-6


def test_penalty_value_and_gradient_for_any_constants(device, backend):
    weights = random_weights(torch.float64, device)
    wide = [w.detach().clone().requires_grad_() for w in weights]
    value, wanted = hypersparse_penalty(weights, 3.0, 250.0), reference.hypersparse_penalty(wide, 3.0, 250.0)
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=0)
    assert relative_error(gradients(value, weights), gradients(wanted, wide)) < 1e-12


def test_gradcheck(device, backend):
    rng = torch.Generator().manual_seed(1)
    weights = [(torch.rand(s, generator=rng, dtype=torch.float64) + 0.1).to(device) for s in ((3, 2), (4,))]
    weights[1][1::2] *= -1  # both signs, away from 0, where the penalty has a kink
    weights = [w.requires_grad_() for w in weights]
    torch.autograd.gradcheck(lambda *w: hypersparse_penalty(w, 1.3, 4.0), weights)


def test_a_frozen_weight_counts_but_gets_no_gradient(device, backend):
    weights = random_weights(torch.float32, device)
    wanted = gradients(hypersparse_loss(weights, 0.5), weights)
    weights[1].requires_grad_(False)
    hypersparse_loss(weights, 0.5).backward()
    assert weights[1].grad is None
    assert all(torch.equal(w.grad, g) for i, (w, g) in enumerate(zip(weights, wanted, strict=True)) if i != 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.98])
def test_subnormal_weights_have_a_scale_beyond_float32(sparsity, dtype, device, backend):
    spread = 1e-40 if dtype == torch.float32 else 1e-39  # steps of 1.4e-45, and of 9.2e-41
    w = (spread * torch.randn(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).to(dtype)
    w = w.to(device).requires_grad_()
    assert 0.6585 / w.detach().double().abs().sort().values[int(sparsity * 10_000)] > 2.0**127
    actual, wanted = gradients(hypersparse_loss([w], sparsity), [w]), reference_gradients([w], sparsity)
    assert relative_error(actual, wanted) < max(1e-5, TOLERANCE[dtype])


def test_the_largest_upstream_gradient_of_subnormal_weights(device, backend):
    """2^126 is where base and strength saturate; the scale is above it, and is neither."""
    w = (1e-42 * torch.randn(1000, generator=torch.Generator().manual_seed(1))).to(device).requires_grad_()
    wanted = reference_gradients([w], 0.5)
    (grad,) = torch.autograd.grad(hypersparse_loss([w], 0.5), [w], torch.tensor(1e30, device=device))
    assert relative_error([grad.double() / 1e30], wanted) < 1e-5


@pytest.mark.parametrize("which", ["loss", "penalty"])
def test_a_second_backward_pass_is_refused(which, device, backend):
    w = torch.randn(100, device=device, requires_grad=True)
    value = hypersparse_loss([w], 0.5) if which == "loss" else hypersparse_penalty([w], 2.0, 30.0)
    (grad,) = torch.autograd.grad(value + (w**2).sum(), [w], create_graph=True)
    with pytest.raises(RuntimeError, match="hypersparse_loss: the gradient has no gradient of its own"):
        grad.square().sum().backward()
    assert w.grad is None


def test_a_second_backward_pass_beside_the_penalty_is_none_of_its_business(device):
    w, x = (torch.randn(10, device=device, requires_grad=True) for _ in range(2))
    (grad,) = torch.autograd.grad((w * x**2).sum() + hypersparse_loss([w], 0.5), [x], create_graph=True)
    grad.square().sum().backward()
    torch.testing.assert_close(w.grad, 8 * w.detach() * x.detach() ** 2)


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_nothing_to_scale_by_gives_zeros_and_a_warning_once_per_call_site(value, device, backend):
    w = torch.randn(1000, device=device)
    w[:900] = value
    w.requires_grad_()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            with torch.no_grad():
                w[-1] += 1.0  # another sum |w|, the same sentence
            loss = hypersparse_loss([w], 0.5)
        hypersparse_loss([w], 0.5)
    assert [warning.filename for warning in caught] == [__file__] * 2
    assert "no penalty, since the magnitude at the target sparsity is 0" in str(caught[0].message)
    assert loss == 0
    assert torch.equal(gradients(loss, [w])[0], torch.zeros_like(w))


def test_one_line_warns_once_whatever_its_weights_hold(device):
    zeros, infinite, small = torch.zeros(10), torch.full((10,), torch.inf), torch.full((10,), 5e-324).double()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for w in (zeros, infinite, small, torch.cat([zeros, torch.ones(3)])):
            hypersparse_loss([w.to(device)], 0.5)
    assert len(caught) == 1 and caught[0].filename == __file__


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_gradients_saturate_where_the_threshold_is_subnormal(dtype, device, backend):
    largest = 65504 if dtype == torch.float16 else 2.0**126
    w = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    w[:600] = 2 * torch.nextafter(torch.tensor(0.0, dtype=dtype), torch.tensor(1.0, dtype=dtype))
    w[0] = 0.0
    w.requires_grad_()
    (grad,) = gradients(hypersparse_loss([w], 0.5), [w])
    assert grad.isfinite().all() and grad[0] == 0 and grad.abs().max() <= largest
    assert (grad[1:600] > largest / 4).all() and (grad[600:] == 0).all()


def test_compiles(device):
    w = torch.randn(50, device=device, requires_grad=True)

    def step(w):
        return (w**2).sum() + 0.1 * hypersparse_loss([w], 0.8)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled(w), [w]), gradients(step(w), [w]))


def test_are_lawful_torch_ops(device, backend):
    weights = random_weights(torch.float32, device)[:3]
    s, a = (torch.tensor(x, dtype=torch.float64, device=device) for x in (2.0, 30.0))
    torch.library.opcheck(torch.ops.sparse_ops.hypersparse_penalty.default, (weights, s, a))
    torch.library.opcheck(torch.ops.sparse_ops.hypersparse_loss.default, (weights, 1500))
    plain = [w.detach() for w in weights]
    coefficients = torch.tensor([0.1, 0.2, 3.0], dtype=torch.float64, device=device)
    torch.library.opcheck(torch.ops.sparse_ops.hypersparse_penalty_backward.default, (plain, coefficients))


def test_names_the_culprit(device):
    w = torch.randn(4, device=device)
    for sparsity in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=f"sparsity is {sparsity}"):
            hypersparse_loss([w], sparsity)
    with pytest.raises(ValueError, match="without a single element"):
        hypersparse_loss([w[:0]], 0.5)
    with pytest.raises(TypeError, match=r"weights\[1\] is torch.int64"):
        hypersparse_loss([w, w.long()], 0.5)
    with pytest.raises(TypeError, match="one tensor of shape"):
        hypersparse_penalty(w, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"weights\[0\] is on .*, weights\[1\] on meta"):
        hypersparse_loss([w, w.to("meta")], 0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_are_rounded_to_nearest_even(dtype, isa):
    """A constant gradient passes through the kernel's float32 unchanged: what comes out is its rounding alone."""
    halves = torch.arange(0, 0x7F80, 37, dtype=torch.int32).to(torch.int16).view(dtype).float()
    halves = halves[halves.isfinite()]
    ties = halves + (torch.nextafter(halves.to(dtype), torch.tensor(torch.inf, dtype=dtype)).float() - halves) / 2
    random = torch.randint(0, 0x7F800000, (300,), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    values = torch.cat([halves, ties, random.view(torch.float32), torch.tensor([65519.9, 65520.0, 1e-45])])
    w = torch.tensor([1.0, -1.0] * 9, dtype=dtype)  # one block of eight, and a rest
    for v in values[values.isfinite()]:
        coefficients = torch.stack(
            [v.double(), torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)]
        )
        (grad,) = torch.ops.sparse_ops.hypersparse_penalty_backward([w], coefficients)
        assert torch.equal(grad, (v * w.float()).to(dtype)), v.item()
