"""sparse_conv2d_weight_grad against the gradient of torch.nn.functional.conv2d in float64."""

import itertools
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

import sparse_ops.ops.sparse_conv2d  # noqa: F401  its op is the gradient's gradient
from sparse_ops.ops.sparse_conv2d_weight_grad import sparse_conv2d_weight_grad


def run(p):
    return sparse_conv2d_weight_grad(p.x, p.dy, *p.pattern.tensors(), *p.shape.window)


def check(p):
    with Poisoned():
        result = run(p)
    p.check("dvalues", result)


@LAYOUTS
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_agrees_with_dense(shape, layout, device, backend):
    interpretable(shape, layout, backend, device)
    check(shared(shape, device=device, layout=layout))


@LAYOUTS
@pytest.mark.parametrize("shape, dtype", EVERY)
def test_every_instruction_set(shape, dtype, layout, isa):
    check(shared(shape, dtype, layout=layout))


@pytest.mark.parametrize("name", ["demo", "groups", "panels of one row"])
@pytest.mark.parametrize("x_layout, dy_layout", list(itertools.permutations(LAYOUT_OF, 2)))
def test_layouts_may_differ(x_layout, dy_layout, name, device, backend):
    interpretable(SHAPES[name], x_layout, backend, device)
    p = Problem(SHAPES[name], device=device, layout=x_layout)
    p.dy = LAYOUT_OF[dy_layout](p.dy)
    check(p)


@LAYOUTS
def test_float32_sums_of_many_products_are_as_exact_as_those_of_few(layout, isa):
    """Sums of a few products are added in float64: the error does not grow with the number of pixels."""
    p = Problem(Shape(32, 2, 2, (64, 64)), density=1.0, layout=layout)
    error = (run(p).double() - p.expected["dvalues"]).abs() / p.sizes["dvalues"]
    assert error.max() < 4 * 2**-24


@LAYOUTS
def test_sums_of_one_sign_over_a_large_image(layout, isa):
    """A quarter of a million products: float32 alone would lose several times the bound."""
    p = Problem(Shape(1, 2, 2, (512, 512)), density=1.0, layout=layout)
    p.x, p.dy = p.x.abs(), p.dy.abs()
    wanted = torch.nn.grad.conv2d_weight(p.x.double(), (2, 2, 3, 3), p.dy.double(), padding=1)
    error = (run(p).double() - p.pattern.gather(wanted)).abs() / p.pattern.gather(wanted)
    assert error.max() < 2**-23


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


@LAYOUTS
def test_same_bits_for_any_number_of_threads(layout, isa):
    threads = torch.get_num_threads()
    try:
        for name in ("demo", "panels", "deep and small"):
            p = shared(SHAPES[name], layout=layout)
            results = []
            for n in (1, 2, 5):
                torch.set_num_threads(n)
                results.append(run(p))
            assert all(torch.equal(r, results[0]) for r in results), name
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["groups", "stride"])
def test_gradcheck(name, device, backend):
    shape = for_many_calls(replace(SHAPES[name], n=2, size=(5, 4)), "contiguous", backend, device)
    p = Problem(shape, torch.float64)
    operands = [t.requires_grad_() for t in (p.x, p.dy)]
    assert torch.autograd.gradcheck(
        lambda a, b: sparse_conv2d_weight_grad(a, b, *p.pattern.tensors(), *p.shape.window), operands, fast_mode=True
    )


@LAYOUTS
def test_is_a_lawful_torch_op(layout, device, backend):
    p = Problem(for_many_calls(SHAPES["stride"], layout, backend, device), device=device, layout=layout)
    operands = [t.requires_grad_() for t in (p.x, p.dy)]
    arguments = (*operands, *p.pattern.tensors(), *p.shape.window)
    torch.library.opcheck(torch.ops.sparse_ops.sparse_conv2d_weight_grad.default, arguments)


def test_ignores_the_values_outside_of_the_pattern(device, backend):
    p = Problem(SHAPES["demo"], device=device)
    p.x[:, 0] = float("nan")  # reaches exactly the values of input channel 0
    finite = run(p).isfinite()
    assert torch.equal(finite, p.pattern.columns >= 9)


RAGGED = [
    Shape(1, 3, 4, (31, 18), padding=(0, 0)),
    Shape(2, 3, 4, (23, 9), (3, 2), stride=(2, 1), padding=(0, 1)),
    Shape(1, 2, 3, (40, 65), (4, 3), dilation=(2, 3), padding=(1, 0)),
    Shape(1, 70, 2, (6, 61), padding=(0, 0)),
]


@LAYOUTS
@pytest.mark.parametrize("shape", RAGGED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_infinities_reach_only_the_taps_that_see_them(dtype, shape, layout, isa):
    """Rows and columns of the image that no output pixel reads at a tap may lie in the kernel's last tile."""
    p = Problem(shape, dtype, layout=layout)
    wanted = p.expected["dvalues"]
    for axis in (2, 3):
        for at in {0, 1, *range(p.x.shape[axis] - 12, p.x.shape[axis])} & set(range(p.x.shape[axis])):
            where = torch.zeros_like(p.x, dtype=torch.float64)
            where.select(axis, at).fill_(1)
            size = (shape.o, shape.c, *shape.kernel)
            seen = torch.nn.grad.conv2d_weight(
                where, size, torch.ones_like(p.dy, dtype=torch.float64), *shape.window[1:]
            )
            reached = p.pattern.gather(seen) > 0
            x, p.x = p.x, p.x.masked_fill(where > 0, float("inf"))
            dvalues = run(p)
            p.x = x
            assert torch.equal(dvalues.isfinite(), ~reached), (axis, at)
            torch.testing.assert_close(dvalues[~reached].double(), wanted[~reached], rtol=1e-4, atol=1e-4)


def test_names_the_culprit(device):
    p = Problem(SHAPES["demo"], device=device)
    pattern, window = p.pattern.tensors(), p.shape.window
    with pytest.raises(TypeError, match=r"x is torch.float32, dy is torch.float64"):
        sparse_conv2d_weight_grad(p.x, p.dy.double(), *pattern, *window)
    with pytest.raises(ValueError, match=r"x has 3 images, dy has 20"):
        sparse_conv2d_weight_grad(p.x[:3], p.dy, *pattern, *window)
    with pytest.raises(ValueError, match=r"dy has \(8, 7\) pixels, expected \(8, 8\)"):
        sparse_conv2d_weight_grad(p.x, p.dy[..., :7], *pattern, *window)
