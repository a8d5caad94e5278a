"""sparse_conv2d's addend and activation against the same steps in float64."""

import pytest
import torch
from conv_problems import DTYPES, LAYOUT_OF, LAYOUTS, ROUNDING, SHAPES, Poisoned, Problem, for_many_calls
from torch.nn.functional import gelu

from sparse_ops.ops.sparse_conv2d import sparse_conv2d

ACTIVATION = {"none": lambda y: y, "relu": torch.relu, "gelu": gelu}
FEW = ["demo", "one image in bands", "stride", "tiny image", "output of one pixel"]


def check(name, dtype, layout, activation, with_addend, bias=True, density=0.3):
    p = Problem(SHAPES[name], dtype, layout=layout, density=density)
    addend = LAYOUT_OF[layout](torch.randn(p.expected["y"].shape).to(dtype)) if with_addend else None
    with Poisoned():
        y = sparse_conv2d(
            p.x, p.values, *p.pattern.tensors(), p.bias if bias else None, *p.shape.window, addend, activation
        )
    total = p.expected["y"] - (0 if bias else p.bias.double().view(-1, 1, 1))
    size = p.sizes["y"] + p.bias.double().abs().view(-1, 1, 1)
    if with_addend:
        total, size = total + addend.double(), size + addend.double().abs()
    expected = ACTIVATION[activation](total)
    # Neither activation is steeper than 1.13; gelu itself errs by a few units in the last place of the sum.
    accumulation = 2**-53 if dtype == torch.float64 else 2**-24
    bound = 2 * ROUNDING[dtype] * expected.abs() + 1.13 * (p.terms["y"] + 16) * accumulation * size
    bound += 2**-24 if dtype == torch.float16 else 0
    assert y.dtype == dtype and bool(((y.double() - expected).abs() <= bound).all())


@LAYOUTS
@pytest.mark.parametrize("activation", ACTIVATION)
@pytest.mark.parametrize("name", FEW)
def test_addend_and_activation(name, activation, layout, backend):
    if backend == "triton" and layout != "contiguous":
        pytest.skip("the kernel knows strides alone, and the interpreter is slow")
    check(name, torch.float32, layout, activation, True)


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "activation, with_addend, bias", [("relu", True, True), ("gelu", False, True), ("none", True, False)]
)
def test_every_instruction_set(activation, with_addend, bias, dtype, layout, isa):
    for name in FEW:
        check(name, dtype, layout, activation, with_addend, bias)
    check("demo", dtype, layout, activation, with_addend, bias, density=0.0)


@LAYOUTS
def test_relu_keeps_nan_and_infinity(layout, isa):
    p = Problem(SHAPES["demo"], layout=layout, density=1.0)
    p.x[2, 0, 0, 0], p.x[3, 0, 4, 4] = float("nan"), float("inf")
    arguments = (p.x, p.values, *p.pattern.tensors(), p.bias, *p.shape.window)
    y, plain = sparse_conv2d(*arguments, None, "relu"), sparse_conv2d(*arguments)
    assert plain.isnan().any() and plain.isinf().any()
    torch.testing.assert_close(y, torch.relu(plain), rtol=0, atol=0, equal_nan=True)


def test_addend_of_another_layout(backend):
    p = Problem(SHAPES["demo"])
    arguments = (p.x, p.values, *p.pattern.tensors(), p.bias, *p.shape.window)
    addend = torch.randn(p.expected["y"].shape)
    expected = sparse_conv2d(*arguments) + addend
    for laid_out in LAYOUT_OF.values():
        torch.testing.assert_close(sparse_conv2d(*arguments, laid_out(addend)), expected)


@LAYOUTS
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_gradients(activation, layout, backend):
    if backend == "triton" and layout != "contiguous":
        pytest.skip("the kernel knows strides alone, and the interpreter is slow")
    p = Problem(SHAPES["stride"], torch.float64, layout=layout)
    addend = LAYOUT_OF[layout](torch.randn(p.expected["y"].shape, dtype=torch.float64))
    leaves = [t.requires_grad_() for t in (p.x, p.values, p.bias, addend)]

    def run(x, values, bias, addend):
        return sparse_conv2d(x, values, *p.pattern.tensors(), bias, *p.shape.window, addend, activation)

    plain = sparse_conv2d(p.x, p.values, *p.pattern.tensors(), p.bias, *p.shape.window)
    expected = torch.autograd.grad(ACTIVATION[activation](plain + addend), leaves, p.dy)
    torch.testing.assert_close(torch.autograd.grad(run(*leaves), leaves, p.dy), expected)


def test_gelu_has_no_gradient_and_says_so():
    p = Problem(SHAPES["demo"])
    arguments = (p.x, p.values.requires_grad_(), *p.pattern.tensors(), None, *p.shape.window, None, "gelu")
    with torch.no_grad():
        sparse_conv2d(*arguments)
    with pytest.raises(ValueError, match=r"activation='gelu' has no gradient"):
        sparse_conv2d(*arguments)


def test_is_a_lawful_torch_op(device, backend):
    p = Problem(for_many_calls(SHAPES["demo"], "contiguous", backend, device), device=device)
    operands = [t.requires_grad_() for t in (p.x, p.values, p.bias, torch.randn(p.expected["y"].shape, device=device))]
    x, values, bias, addend = operands
    arguments = (x, values, *p.pattern.tensors(), bias, *p.shape.window, addend, "relu")
    torch.library.opcheck(torch.ops.sparse_ops.sparse_conv2d.default, arguments)


def test_names_the_culprit():
    p = Problem(SHAPES["demo"])
    arguments = (p.x, p.values, *p.pattern.tensors(), None, *p.shape.window)
    with pytest.raises(ValueError, match=r"addend is \(20, 9, 8\), expected \(20, 9, 8, 8\)"):
        sparse_conv2d(*arguments, torch.randn(20, 9, 8))
    with pytest.raises(TypeError, match=r"addend is torch.float64"):
        sparse_conv2d(*arguments, torch.randn(20, 9, 8, 8).double())
    with pytest.raises(ValueError, match=r"activation is 'tanh', expected one of"):
        sparse_conv2d(*arguments, None, "tanh")
