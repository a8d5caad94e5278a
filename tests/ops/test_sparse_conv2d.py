"""sparse_conv2d against torch.nn.functional.conv2d in float64."""

from dataclasses import replace

import pytest
import torch
from conv_problems import (
    DTYPES,
    EVERY,
    LAYOUT_OF,
    LAYOUTS,
    NO_VALUES,
    SHAPES,
    Poisoned,
    Problem,
    Shape,
    for_many_calls,
    interpretable,
    shared,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_ops import launch
from sparse_ops.layouts import is_batch_last
from sparse_ops.ops.sparse_conv2d import sparse_conv2d


def forward(p, bias=True):
    return sparse_conv2d(p.x, p.values, *p.pattern.tensors(), p.bias if bias else None, *p.shape.window)


def steps(y):
    return [stride for stride, size in zip(y.stride(), y.shape, strict=True) if size != 1]


def check(p):
    with Poisoned():
        y = forward(p)
    p.check("y", y)
    if launch.backend(y.device) == "native":
        with torch.inference_mode():
            plain = forward(p)
        assert torch.equal(plain, y) and (y.numel() == 0 or steps(plain) == steps(y))
    if not p.x.is_contiguous():
        last = p.x.is_contiguous(memory_format=torch.channels_last)
        assert y.numel() == 0 or (y.is_contiguous(memory_format=torch.channels_last) if last else is_batch_last(y))


@LAYOUTS
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_agrees_with_dense(shape, layout, device, backend):
    interpretable(shape, layout, backend, device)
    check(shared(shape, device=device, layout=layout))


@LAYOUTS
@pytest.mark.parametrize("shape, dtype", EVERY)
def test_every_instruction_set(shape, dtype, layout, isa):
    check(shared(shape, dtype, layout=layout))


@pytest.mark.parametrize("name", ["demo", "more groups than taps"])
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_empty_and_full_patterns(density, name, device, backend):
    check(Problem(SHAPES[name], device=device, density=density))


@LAYOUTS
@pytest.mark.parametrize("shape", NO_VALUES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_value_in_every_instruction_set(dtype, shape, layout, isa):
    p = Problem(shape, dtype, density=0.0, layout=layout)
    assert p.values.numel() == 0
    check(p)
    with Poisoned():
        assert not forward(p, bias=False).any()


@pytest.mark.parametrize("name", ["demo", "stride", "stem", "groups", "one by one"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weight_without_zeros_in_batch_last(dtype, name, isa):
    check(Problem(SHAPES[name], dtype, density=1.0, layout="batch_last"))
    check(Problem(Shape(33, 3, 10, (6, 9), stride=(2, 1)), dtype, density=1.0, layout="batch_last"))


@pytest.mark.parametrize("density", [0.3, 1.0])
def test_batch_last_has_the_same_bits_on_any_number_of_threads(density):
    p = Problem(Shape(17, 9, 130, (23, 22)), density=density, layout="batch_last")
    before = torch.get_num_threads()
    try:
        answers = []
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            answers.append(forward(p))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(answers[0], y) for y in answers[1:])


@pytest.mark.parametrize("density", [0.4, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_infinities_in_batch_last_reach_what_reads_them_alone(dtype, density, isa):
    p = Problem(Shape(3, 3, 6, (7, 8)), dtype, density=density, layout="batch_last")
    p.x[1, 2, 0, 7] = torch.inf
    p.x[2, 0, 6, 0] = torch.nan
    weight = p.pattern.to_dense(p.values).view(6, 3, 3, 3).double()
    # Where the weight is 0 nothing is read; torch would multiply the zero by the infinity.
    expected = torch.conv2d(p.x.double().nan_to_num(0, 0, 0), weight, p.bias.double(), padding=1)
    reads = torch.conv2d((~p.x.isfinite()).double(), (weight != 0).double(), padding=1) > 0
    y = forward(p)
    assert reads.any() and torch.equal(y.isfinite(), ~reads)
    assert torch.allclose(y.double()[~reads], expected[~reads], rtol=1e-2, atol=0.1)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_random_geometry(data):
    groups = data.draw(st.integers(1, 3))
    pair = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
    kernel, dilation, padding = (data.draw(pair(*limits)) for limits in ((1, 4), (1, 3), (0, 4)))
    size = tuple(
        data.draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), 24))
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    )
    n = data.draw(st.integers(1, 20))
    c, o = (groups * data.draw(st.integers(1, 9)) for _ in range(2))
    shape = Shape(n, c, o, size, kernel, data.draw(pair(1, 4)), padding, dilation, groups)
    check(Problem(shape, layout=data.draw(st.sampled_from(sorted(LAYOUT_OF))), seed=n))


def test_same_bits_for_any_number_of_threads(isa):
    threads = torch.get_num_threads()
    try:
        for name in ("demo", "panels", "deep and small"):
            p = Problem(SHAPES[name])
            results = []
            for n in (1, 2, 5):
                torch.set_num_threads(n)
                results.append(forward(p))
            assert all(torch.equal(y, results[0]) for y in results), name
    finally:
        torch.set_num_threads(threads)


def test_strided_and_expanded_input(device, backend):
    p = Problem(SHAPES["demo"], device=device)
    wide = torch.full((20, 12, 8, 16), float("nan"), device=device)
    wide[..., ::2] = p.x
    p.x = wide[..., ::2]
    p.check("y", forward(p))
    p = Problem(SHAPES["demo"], device=device)
    y = sparse_conv2d(p.x[:1].expand(4, -1, -1, -1), p.values, *p.pattern.tensors(), None, *p.shape.window)
    assert torch.equal(y[3], forward(p, bias=False)[0]) or torch.allclose(y[3], forward(p, bias=False)[0], atol=1e-5)


def test_nonfinite_pixels_stay_where_they_are(device, backend):
    p = Problem(SHAPES["demo"], device=device, density=1.0)
    p.x[3, 2, 0, 0] = float("inf")
    finite = forward(p).isfinite()
    reached = torch.ones_like(finite)
    reached[3, :, :2, :2] = False
    assert torch.equal(finite, reached)


@pytest.mark.parametrize("name", ["demo", "groups", "stride"])
def test_gradcheck(name, device, backend):
    shape = for_many_calls(replace(SHAPES[name], n=2, size=(5, 4)), "contiguous", backend, device)
    p = Problem(shape, torch.float64)
    operands = [t.requires_grad_() for t in (p.x, p.values, p.bias)]

    def run(x, values, bias):
        return sparse_conv2d(x, values, *p.pattern.tensors(), bias, *shape.window)

    assert torch.autograd.gradcheck(run, operands, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, operands, fast_mode=True)


@LAYOUTS
def test_is_a_lawful_torch_op(layout, device, backend):
    p = Problem(for_many_calls(SHAPES["demo"], layout, backend, device), device=device, layout=layout)
    operands = [t.requires_grad_() for t in (p.x, p.values, p.bias)]
    arguments = (*operands[:2], *p.pattern.tensors(), operands[2], *p.shape.window)
    torch.library.opcheck(torch.ops.sparse_ops.sparse_conv2d.default, arguments)


def test_names_the_culprit(device):
    p = Problem(SHAPES["demo"], device=device)

    def run(x=p.x, values=p.values, bias=p.bias, kernel=(3, 3), stride=(1, 1), padding=(1, 1), groups=1):
        return sparse_conv2d(x, values, *p.pattern.tensors(), bias, kernel, stride, padding, (1, 1), groups)

    with pytest.raises(TypeError, match=r"x is torch.float64, values is torch.float32"):
        run(x=p.x.double())
    with pytest.raises(TypeError, match=r"int64, expected a floating point tensor"):
        run(x=p.x.long())
    with pytest.raises(ValueError, match=r"x has 5 channels, the weight 12"):
        run(x=p.x[:, :5])
    with pytest.raises(ValueError, match=r"kernel \(3, 3\) .* covers \(3, 3\) pixels, the padded input has \(2, 8\)"):
        run(x=p.x[:, :, :2], padding=(0, 0))
    with pytest.raises(ValueError, match=r"bias is \(4,\), expected \(9,\)"):
        run(bias=p.bias[:4])
    with pytest.raises(ValueError, match=r"values are \(3,\), expected \(\d+,\)"):
        run(values=p.values[:3])
    with pytest.raises(ValueError, match=r"groups is 2, expected a divisor of the 9 output channels"):
        run(groups=2)
    with pytest.raises(ValueError, match=r"kernel_size is \(5, 5\), the weight's matrix has 108 columns"):
        run(kernel=(5, 5))
    with pytest.raises(ValueError, match=r"stride is \(1, 0\), expected at least 1"):
        run(stride=(1, 0))
    with pytest.raises(ValueError, match=r"x is \(12, 8, 8\), expected \(N, C, H, W\)"):
        run(x=p.x[0])


def test_operands_that_python_has_to_look_at_without_autograd():
    p = Problem(SHAPES["demo"], layout="batch_last")
    expected = forward(p)
    with torch.inference_mode():
        spread = torch.empty(20, 12, 8, 16)[..., ::2].copy_(p.x)
        p.check("y", sparse_conv2d(spread, p.values, *p.pattern.tensors(), p.bias, *p.shape.window))
        twice = torch.stack([p.values, p.values], 1)[:, 0]
        assert torch.equal(sparse_conv2d(p.x, twice, *p.pattern.tensors(), p.bias, *p.shape.window), expected)
        addend = torch.randn(expected.shape)
        y = sparse_conv2d(p.x, p.values, *p.pattern.tensors(), p.bias, *p.shape.window, addend=addend)
        assert torch.allclose(y, expected + addend, atol=1e-5)
        with pytest.raises(ValueError, match="x has 11 channels, the weight 12"):
            sparse_conv2d(p.x[:, :11], p.values, *p.pattern.tensors(), p.bias, *p.shape.window)
        with pytest.raises(TypeError, match="values"):
            sparse_conv2d(p.x, p.values.double(), *p.pattern.tensors(), p.bias, *p.shape.window)
