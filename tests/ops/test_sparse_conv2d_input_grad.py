"""sparse_conv2d_input_grad against the gradient of torch.nn.functional.conv2d in float64."""

from dataclasses import replace

import pytest
import torch
from conv_problems import (
    DTYPES,
    EVERY,
    LAYOUTS,
    NO_VALUES,
    SHAPES,
    Poisoned,
    Problem,
    for_many_calls,
    interpretable,
    shared,
)

import sparse_ops.ops.sparse_conv2d  # noqa: F401  its op is the gradient's gradient
from sparse_ops.ops.sparse_conv2d_input_grad import sparse_conv2d_input_grad


def run(p):
    return sparse_conv2d_input_grad(p.dy, p.values, *p.pattern.tensors(), p.shape.size, *p.shape.window)


def check(p):
    with Poisoned():
        result = run(p)
    p.check("dx", result)


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


def test_same_bits_for_any_number_of_threads(isa):
    threads = torch.get_num_threads()
    try:
        for name in ("demo", "panels", "deep and small"):
            p = shared(SHAPES[name])
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
    operands = [t.requires_grad_() for t in (p.dy, p.values)]
    assert torch.autograd.gradcheck(
        lambda a, b: sparse_conv2d_input_grad(a, b, *p.pattern.tensors(), p.shape.size, *p.shape.window),
        operands,
        fast_mode=True,
    )


@LAYOUTS
def test_is_a_lawful_torch_op(layout, device, backend):
    p = Problem(for_many_calls(SHAPES["stride"], layout, backend, device), device=device, layout=layout)
    operands = [t.requires_grad_() for t in (p.dy, p.values)]
    arguments = (*operands, *p.pattern.tensors(), p.shape.size, *p.shape.window)
    torch.library.opcheck(torch.ops.sparse_ops.sparse_conv2d_input_grad.default, arguments)


def test_names_the_culprit(device):
    p = Problem(SHAPES["demo"], device=device)
    pattern, window = p.pattern.tensors(), p.shape.window
    with pytest.raises(TypeError, match=r"dy is torch.float64, values is torch.float32"):
        sparse_conv2d_input_grad(p.dy.double(), p.values, *pattern, (8, 8), *window)
    with pytest.raises(ValueError, match=r"dy has \(8, 8\) pixels, expected \(9, 8\)"):
        sparse_conv2d_input_grad(p.dy, p.values, *pattern, (9, 8), *window)
    with pytest.raises(ValueError, match=r"dy has 3 channels, the weight 9"):
        sparse_conv2d_input_grad(p.dy[:, :3], p.values, *pattern, (8, 8), *window)
