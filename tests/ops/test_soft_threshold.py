"""soft_threshold and its gradients against autograd through the literal formula in float64."""

import pytest
import torch

from sparse_ops.ops.soft_threshold import soft_threshold
from sparse_ops.reference import soft_threshold as reference

OP = torch.ops.sparse_ops.soft_threshold
# relative: float32 arithmetic, then one rounding to the weight's own format
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
SHAPES = [(40, 30), (16, 3, 5, 5), (7,), (1, 1), (3, 1), (5, 40, 3)]


class EluBackward(torch.autograd.Function):
    """relu, with the derivative of ELU: 1 above 0, exp(x) below."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * torch.where(x > 0, 1.0, x.exp())


def literal(weight, thresholds, relative, leaky):
    """sign(w) relu(|w| - t), for weights that are not zero."""
    if leaky == "relu":
        return reference.soft_threshold(weight, thresholds, relative)
    rows = weight.reshape(thresholds.numel(), -1)
    t = thresholds.reshape(-1, 1) * (rows.abs().sum(1, keepdim=True) if relative else 1)
    return (rows.sign() * EluBackward.apply(rows.abs() - t)).reshape(weight.shape)


def problem(shape, per_row, dtype, device, relative, seed=0):
    """Laplace-like weights and thresholds that prune most of them, the last group entirely when there are several."""
    rng = torch.Generator().manual_seed(seed)
    weight = (torch.randn(shape, generator=rng, dtype=torch.float64) ** 3).to(dtype)
    weight[weight == 0] = 1e-3
    groups = shape[0] if per_row else 1
    t = 0.1 + torch.rand(groups, generator=rng, dtype=torch.float64)
    if relative:
        t = t * groups / weight.numel()
    if groups > 1:
        t[-1] = 100.0
    grad = torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)
    return weight.to(device), t.to(device, torch.float64 if dtype == torch.float64 else torch.float32), grad.to(device)


def check(weight, t, grad, relative, leaky):
    """Output and both gradients, norm-wise, and the zeros where the formula has them."""
    tolerance = TOLERANCE[weight.dtype]
    actual, wanted = [weight.detach(), t.detach()], [weight.detach().double(), t.detach().double()]
    for inputs in (actual, wanted):
        for i, x in enumerate(inputs):
            inputs[i] = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y, y64 = soft_threshold(*actual, relative, leaky), literal(*wanted, relative, leaky)
    y.backward(grad), y64.backward(grad.double())
    assert y.dtype == weight.dtype and actual[0].grad.dtype == weight.dtype and actual[1].grad.dtype == t.dtype
    magnitudes = weight.reshape(t.numel(), -1).double().abs()
    threshold = t.reshape(-1, 1).double() * (magnitudes.sum(1, keepdim=True) if relative else 1)
    near = (magnitudes - threshold).abs() <= 1e-6 * threshold  # float32 may decide otherwise than float64
    sure = ~(near | (weight.dtype == torch.float16) & ((magnitudes - threshold).abs() < 2**-24)).reshape(weight.shape)
    assert torch.equal((y == 0)[sure], (y64 == 0)[sure]) and sure.double().mean() > 0.99
    for a, b in ((y, y64), (actual[0].grad, wanted[0].grad), (actual[1].grad, wanted[1].grad)):
        assert (a.double() - b).norm() <= tolerance * max(b.norm(), grad.double().norm() * 1e-3 * tolerance)


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize("leaky", ["relu", "elu"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_against_the_formula(dtype, leaky, relative, device, backend):
    for seed, shape in enumerate([(5, 30), (7,)] if backend == "triton" else SHAPES):
        for per_row in (False, True):
            weight, t, grad = problem(shape, per_row, dtype, device, relative, seed)
            check(weight, t, grad, relative, leaky)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape, per_row", [((150_001,), False), ((3, 70_003), True), ((50, 600), True)])
def test_large_groups_on_every_instruction_set(dtype, shape, per_row, isa):
    for relative in (False, True):
        for leaky in ("relu", "elu"):
            check(*problem(shape, per_row, dtype, torch.device("cpu"), relative), relative, leaky)


def test_groups_of_several_programs(device):
    """More elements than one Triton program takes."""
    from sparse_ops import launch

    pytest.importorskip("triton")
    with launch.forced("triton"):
        for relative in (False, True):
            check(*problem((2, 17_000), True, torch.float32, device, relative), relative, "elu")


def test_by_hand(device, backend):
    w = torch.tensor([[3.0, -1.0, 0.5, 0.0], [0.25, -0.25, 2.0, -1.5]], device=device, requires_grad=True)
    t = torch.tensor([1.0, 0.25], device=device, requires_grad=True)
    y = soft_threshold(w, t)
    assert y.tolist() == [[2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.75, -1.25]]
    y.backward(torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], device=device))
    assert w.grad.tolist() == [[1, 0, 0, 0], [0, 0, 7, 8]]
    assert t.grad.tolist() == [-1, -7 + 8]

    w = torch.tensor([4.0, -2.0, 1.0, 1.0], device=device, requires_grad=True)  # sum 8, threshold 2
    share = torch.tensor(0.25, device=device, requires_grad=True)
    y = soft_threshold(w, share, relative=True)
    assert y.tolist() == [2.0, 0.0, 0.0, 0.0]  # a magnitude equal to the threshold is pruned
    y.backward(torch.tensor([2.0, 1.0, 1.0, 1.0], device=device))
    assert share.grad.item() == -2 * 8
    assert w.grad.tolist() == [2 - 0.5, 0.5, -0.5, -0.5]


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("per_row", [False, True])
def test_gradcheck(per_row, relative, device):
    weight, t, _ = problem((3, 4), per_row, torch.float64, device, relative)
    torch.autograd.gradcheck(
        lambda w, s: soft_threshold(w, s, relative), (weight.requires_grad_(), t.requires_grad_()), eps=1e-7
    )


def test_elu_revives_a_weight_of_zero(device, backend):
    w = torch.tensor([0.0, 1.0], device=device, requires_grad=True)
    soft_threshold(w, torch.tensor(0.5, device=device), leaky="elu").backward(torch.tensor([2.0, 3.0], device=device))
    torch.testing.assert_close(w.grad, torch.tensor([2 * 0.6065306597126334, 3.0], device=device))


@pytest.mark.parametrize("relative", [False, True])
def test_corners(relative, device, backend):
    zeros = torch.zeros(3, 5, device=device, requires_grad=True)  # all weights of a group zero
    t = torch.full((3,), 0.1, device=device, requires_grad=True)
    y = soft_threshold(zeros, t, relative)
    y.sum().backward()
    assert not y.any() and not zeros.grad.any() and not t.grad.any()
    empty = torch.zeros(3, 0, device=device, requires_grad=True)
    y = soft_threshold(empty, t, relative)
    y.sum().backward()
    assert y.shape == (3, 0) and empty.grad.shape == (3, 0)
    assert soft_threshold(torch.zeros(0, 4, device=device), t[:0], relative).shape == (0, 4)
    single = soft_threshold(
        torch.tensor([[2.0], [-4.0]], device=device), torch.tensor([0.25, 0.5], device=device), True
    )
    assert single.tolist() == [[1.5], [-2.0]]  # groups of one: a = w (1 - share), never dead below a share of one
    lone = soft_threshold(torch.tensor(-3.0, device=device), torch.tensor(1.0, device=device), relative)
    assert lone.item() == (0.0 if relative else -2.0)


@pytest.mark.parametrize("leaky", ["relu", "elu"])
def test_a_nan_never_becomes_a_zero(leaky, device, backend):
    w = torch.tensor([[1.0, float("nan"), 0.1, 5.0]], device=device)
    assert soft_threshold(w, torch.tensor(0.5, device=device), leaky=leaky).isnan().tolist() == [
        [False, True, False, False]
    ]
    assert soft_threshold(w, torch.tensor(0.01, device=device), True, leaky).isnan().all()
    assert soft_threshold(w, torch.tensor(float("nan"), device=device), leaky=leaky).isnan().all()


@pytest.mark.parametrize("relative", [False, True])
def test_layouts(relative, device, backend):
    base, t, grad = problem((6, 4, 3, 3), True, torch.float32, device, relative)
    for weight in (
        base.contiguous(memory_format=torch.channels_last),
        base.transpose(0, 1).contiguous().transpose(0, 1),  # a filter is not one run of memory
        torch.stack([base, base], -1)[..., 0],
    ):
        check(weight, t, grad, relative, "relu")
    y = soft_threshold(base.contiguous(memory_format=torch.channels_last), t, relative)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_same_bits_for_any_number_of_threads(isa):
    weight, t, grad = problem((2, 400_000), True, torch.float32, torch.device("cpu"), True)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        y, levels = OP(weight, t, True, False)
        results.append([y, levels, *torch.ops.sparse_ops.soft_threshold_backward(grad, weight, levels, True, False)])
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_are_lawful_torch_ops(device, backend):
    weight, t, grad = problem((4, 6), True, torch.float32, device, True)
    for relative, elu in ((False, True), (True, False)):
        w, s = weight.clone().requires_grad_(), t.clone().requires_grad_()
        torch.library.opcheck(OP.default, (w, s, relative, elu))
        levels = OP(weight, t, relative, elu)[1]
        torch.library.opcheck(
            torch.ops.sparse_ops.soft_threshold_backward.default, (grad, weight, levels, relative, elu)
        )


def test_refuses(device):
    w, t = torch.randn(4, 3, device=device), torch.ones(1, device=device)
    with pytest.raises(ValueError, match=r"3 thresholds for a weight of shape \(4, 3\)"):
        soft_threshold(w, t.expand(3))
    with pytest.raises(ValueError, match="leaky is 'selu'; it may be one of relu, elu"):
        soft_threshold(w, t, leaky="selu")
    with pytest.raises(TypeError, match=r"weight is torch.int64"):
        soft_threshold(w.long(), t)
    with pytest.raises(ValueError, match=r"weight is on .*, thresholds on meta"):
        soft_threshold(w, t.to("meta"))
    w.requires_grad_()
    (grad,) = torch.autograd.grad((soft_threshold(w, t) ** 2).sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match="no gradient of its own"):
        grad.sum().backward()
