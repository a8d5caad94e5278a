"""Convolution problems for tests: an image, a sparse weight, and the dense answers in float64."""

import functools
from dataclasses import dataclass, replace

import pytest
import torch

from sparse_ops.formats import Pattern
from sparse_ops.layouts import batch_last

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LAYOUT_OF = {
    "contiguous": torch.Tensor.contiguous,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "batch_last": batch_last,
}
LAYOUTS = pytest.mark.parametrize("layout", LAYOUT_OF)
# Half a unit in the last place of the output dtype, plus the accumulation in float32 or float64.
ROUNDING = {torch.float32: 2**-24, torch.float64: 2**-53, torch.float16: 2**-11, torch.bfloat16: 2**-8}


@dataclass(frozen=True)
class Shape:
    """images, in and out channels, image (H, W), and the window."""

    n: int
    c: int
    o: int
    size: tuple[int, int]
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def window(self):
        return self.kernel, self.stride, self.padding, self.dilation, self.groups


SHAPES = {
    "one by one": Shape(1, 1, 1, (1, 1), (1, 1), padding=(0, 0)),
    "demo": Shape(20, 12, 9, (8, 8)),
    "tiny image": Shape(17, 6, 5, (2, 2)),
    "one image in bands": Shape(1, 5, 4, (31, 18)),
    "panels": Shape(3, 80, 3, (6, 151)),
    "panels of the gradient": Shape(1, 60, 80, (4, 301), stride=(1, 2)),
    "panels of one row": Shape(16, 130, 3, (12, 25), (1, 1), padding=(0, 0)),
    "deep and small": Shape(18, 300, 4, (7, 7)),
    "stride": Shape(5, 4, 6, (15, 14), stride=(2, 3), padding=(1, 2)),
    "stride beyond kernel": Shape(4, 6, 4, (11, 9), (1, 1), stride=(2, 2), padding=(0, 0)),
    "dilation": Shape(3, 4, 5, (13, 17), (3, 2), dilation=(2, 3), padding=(2, 0)),
    "groups": Shape(6, 12, 8, (9, 6), groups=4),
    "depthwise": Shape(2, 7, 14, (10, 10), groups=7),
    "more groups than taps": Shape(3, 8, 8, (5, 4), (1, 1), padding=(0, 0), groups=4),
    "pixels in groups": Shape(3, 6, 9, (8, 9), (1, 1), padding=(0, 0), groups=3),
    "stem": Shape(2, 3, 8, (40, 37), (7, 7), stride=(2, 2), padding=(3, 3)),
    "patches": Shape(2, 3, 5, (16, 16), (4, 4), stride=(4, 4), padding=(0, 0)),
    "output of one pixel": Shape(5, 3, 4, (5, 3), (5, 3), padding=(0, 0)),
    "padding wider than kernel": Shape(2, 3, 4, (6, 5), (1, 2), padding=(2, 3)),
    "wide": Shape(1, 2, 2, (3, 700)),
    "no images": Shape(0, 4, 5, (6, 6)),
}

FEW = ["demo", "one image in bands", "groups", "stride", "stem", "pixels in groups"]
EVERY = [pytest.param(shape, torch.float32, id=name) for name, shape in SHAPES.items()]
EVERY += [pytest.param(SHAPES[name], dtype, id=f"{name}-{dtype}") for dtype in DTYPES[1:] for name in FEW]

NO_VALUES = [SHAPES[name] for name in ("demo", "groups", "depthwise", "more groups than taps", "no images")]
NO_VALUES += [Shape(2, 32, 32, (6, 5), groups=32), Shape(1, 5, 4, (31, 18))]


def interpretable(shape, layout, backend, device):
    """Skip what Triton's interpreter takes seconds for; a GPU runs everything."""
    if (
        backend == "triton"
        and device.type == "cpu"
        and (shape.c > 50 or (layout != "contiguous" and shape.groups == 1))
    ):
        pytest.skip("too many programs for the interpreter")


def for_many_calls(shape, layout, backend, device):
    """The shape, and for Triton's interpreter few channels and pixels under its window, in one layout: a check of
    gradients or of an op's laws calls the kernels dozens of times, which took minutes."""
    if backend != "triton" or device.type != "cpu":
        return shape
    if layout != "contiguous":
        pytest.skip("the kernel knows strides alone, and the interpreter is slow")
    groups = min(shape.groups, 2)
    return replace(shape, n=2, c=2 * groups, o=2 * groups, size=(4, 3), groups=groups)


class Problem:
    """Operands in `dtype` on `device`, and what float64 says of y, dx, dvalues and dbias."""

    def __init__(self, shape, dtype=torch.float32, device="cpu", density=0.3, layout="contiguous", seed=0):
        rng = torch.Generator().manual_seed(seed)
        kh, kw = shape.kernel

        def randn(*size):
            return torch.randn(*size, generator=rng, dtype=torch.float64).to(dtype)

        weight = randn(shape.o, shape.c // shape.groups, kh, kw)
        weight[torch.rand(weight.shape, generator=rng) >= density] = 0
        laid_out = LAYOUT_OF[layout]
        self.shape, self.dtype = shape, dtype
        pattern, values = Pattern.from_dense(weight.to(device))
        self.pattern, self.values = pattern, values
        self.x = laid_out(randn(shape.n, shape.c, *shape.size).to(device))
        self.bias = randn(shape.o).to(device)
        x, w, b = (t.detach().double().cpu().requires_grad_() for t in (self.x, weight, self.bias))
        y = torch.nn.functional.conv2d(x, w, b, *shape.window[1:])
        self.dy = laid_out(randn(*y.shape).to(device))
        dx, dw, db = torch.autograd.grad(y, (x, w, b), self.dy.double().cpu())
        self.expected = {"y": y.detach(), "dx": dx, "dvalues": pattern.to("cpu").gather(dw), "dbias": db}
        # The same sums of absolute values bound every rounding error on the way.
        xa, wa, ba = (t.detach().abs().requires_grad_() for t in (x, w, b))
        ya = torch.nn.functional.conv2d(xa, wa, ba, *shape.window[1:])
        dxa, dwa, dba = torch.autograd.grad(ya, (xa, wa, ba), self.dy.double().cpu().abs())
        self.sizes = {"y": ya.detach(), "dx": dxa, "dvalues": pattern.to("cpu").gather(dwa), "dbias": dba}
        n_out = shape.n * y.shape[2] * y.shape[3]
        self.terms = {"y": shape.c * kh * kw, "dx": shape.o * kh * kw, "dvalues": n_out, "dbias": n_out}

    def check(self, name, actual):
        """|actual - expected| <= the rounding of the output + the accumulation of its terms, element by element."""
        expected, size = self.expected[name], self.sizes[name]
        accumulation = 2**-53 if self.dtype == torch.float64 else 2**-24
        bound = 2 * ROUNDING[self.dtype] * expected.abs() + (self.terms[name] + 8) * accumulation * size
        if self.dtype == torch.float16:
            bound += 2**-24  # half precision's smallest step
        if name == "dbias" and self.dtype in (torch.float16, torch.bfloat16):
            bound += 2 * ROUNDING[self.dtype] * size  # summed by torch
        error = (actual.detach().double().cpu() - expected).abs()
        assert actual.shape == expected.shape and actual.dtype == self.dtype
        assert bool((error <= bound).all()), f"{name}: error {error.max():.3g}, allowed {bound[error > bound]}"


shared = functools.lru_cache(maxsize=None)(Problem)  # for tests that write to none of its tensors


class Poisoned:
    """While it lasts, uninitialised memory holds NaN, so that whatever an op forgets to write shows."""

    def __enter__(self):
        torch.use_deterministic_algorithms(True)
        assert torch.utils.deterministic.fill_uninitialized_memory

    def __exit__(self, *error):
        torch.use_deterministic_algorithms(False)
