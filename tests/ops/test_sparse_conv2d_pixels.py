"""sparse_conv2d and its gradients with neighbouring pixels in the lanes of a register: tiles of every kind."""

import pytest
import torch
from conv_problems import DTYPES, LAYOUT_OF, Poisoned, Problem, Shape, shared

from sparse_ops.ops.sparse_conv2d import sparse_conv2d
from sparse_ops.ops.sparse_conv2d_input_grad import sparse_conv2d_input_grad
from sparse_ops.ops.sparse_conv2d_weight_grad import sparse_conv2d_weight_grad

SHAPES = {
    "bands of an image": Shape(2, 200, 6, (30, 28)),
    "a last band of fewer rows": Shape(1, 260, 5, (23, 31), (5, 3), padding=(2, 1)),
    "several images, joined": Shape(11, 96, 20, (7, 7)),
    "several images, a gap between": Shape(7, 40, 9, (14, 14)),
    "a last tile of fewer images": Shape(9, 300, 4, (8, 7)),
    "one image of few pixels": Shape(1, 300, 33, (7, 7)),
    "without padding": Shape(3, 20, 7, (16, 18), (3, 5), padding=(0, 0)),
    "padding on one side of the taps": Shape(2, 9, 6, (12, 15), (1, 3), padding=(2, 3)),
    "dilation": Shape(2, 12, 8, (20, 33), dilation=(3, 5), padding=(3, 5)),
    "one by one with a stride": Shape(3, 24, 17, (15, 29), (1, 1), stride=(2, 2), padding=(0, 0)),
    "one by one with unlike strides": Shape(2, 24, 17, (15, 40), (1, 1), stride=(3, 2), padding=(0, 1)),
    "groups": Shape(3, 24, 18, (12, 16), groups=3),
    "past the caches": Shape(16, 8, 48, (46, 47)),
    "past the caches, lines not whole": Shape(16, 8, 40, (52, 50)),
}
USERS = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])


@USERS
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_gradients(dtype, shape, layout, isa):
    if dtype != torch.float32 and shape.n == 16:
        pytest.skip("float32 alone has lines of a whole register that go past the caches")
    p = shared(shape, dtype, layout=layout, density=0.1)
    pattern = p.pattern.tensors()
    with Poisoned():
        y = sparse_conv2d(p.x, p.values, *pattern, p.bias, *shape.window)
        dx = sparse_conv2d_input_grad(p.dy, p.values, *pattern, list(shape.size), *shape.window)
        dvalues = sparse_conv2d_weight_grad(p.x, p.dy, *pattern, *shape.window)
    p.check("y", y)
    p.check("dx", dx)
    p.check("dvalues", dvalues)


@USERS
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["bands of an image", "several images, joined", "a last tile of fewer images",
                                  "past the caches"])  # fmt: skip
def test_addend_and_activation(name, dtype, activation, layout, isa):
    shape = SHAPES[name]
    if dtype != torch.float32 and shape.n == 16:
        pytest.skip("float32 alone has lines of a whole register that go past the caches")
    p = shared(shape, dtype, layout=layout, density=0.1)
    addend = LAYOUT_OF[layout](torch.randn(p.expected["y"].shape, generator=torch.Generator().manual_seed(1)).to(dtype))
    with Poisoned():
        y = sparse_conv2d(p.x, p.values, *p.pattern.tensors(), p.bias, *shape.window, addend, activation)
    expected = p.expected["y"] + addend.double()
    expected = {"none": expected, "relu": expected.relu(), "gelu": torch.nn.functional.gelu(expected)}[activation]
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance * float(p.sizes["y"].max()))


@USERS
@pytest.mark.parametrize("name", ["bands of an image", "several images, joined", "one image of few pixels"])
def test_same_bits_for_any_number_of_threads(name, layout, isa):
    p, threads, results = shared(SHAPES[name], layout=layout, density=0.1), torch.get_num_threads(), []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            y = sparse_conv2d(p.x, p.values, *p.pattern.tensors(), p.bias, *p.shape.window)
            results.append((y, sparse_conv2d_weight_grad(p.x, p.dy, *p.pattern.tensors(), *p.shape.window)))
    finally:
        torch.set_num_threads(threads)
    for y, dvalues in results:
        assert torch.equal(y, results[0][0]) and torch.equal(dvalues, results[0][1])


@USERS
def test_a_pixel_that_is_not_finite_reaches_what_reads_it_alone(layout, isa):
    """Also at the ends of rows and of images, beyond which the lanes of a register go on."""
    p = Problem(SHAPES["several images, a gap between"], layout=layout, density=0.1)
    for row, column in ((0, 0), (13, 13), (6, 13), (7, 0)):
        x = p.x.clone(memory_format=torch.preserve_format)
        x[3, :, row, column] = float("nan")
        y = sparse_conv2d(x, p.values, *p.pattern.tensors(), p.bias, *p.shape.window)
        seen = torch.zeros(14, 14, dtype=torch.bool)
        seen[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = True
        assert bool(y[:3].isfinite().all()) and bool(y[4:].isfinite().all())
        assert bool(y[3][:, ~seen].isfinite().all()) and not bool(y[3][:, seen].isfinite().all())
