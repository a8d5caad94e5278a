"""Sparse convolution against dense torch.nn.functional.conv2d, which is timed in NCHW and in channels_last.

python -m bench conv --shapes resnet50 --sparsity 0.95 0.98 --json out/conv.jsonl
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from bench.common import measure, parser, report, start
from sparse_ops.formats import Pattern
from sparse_ops.ops.sparse_conv2d import sparse_conv2d
from sparse_ops.ops.sparse_conv2d_input_grad import sparse_conv2d_input_grad
from sparse_ops.ops.sparse_conv2d_weight_grad import sparse_conv2d_weight_grad

# images, in channels, out channels, image side, kernel, stride
SHAPES = {
    "demo": [
        (64, 32, 32, 8, 3, 1),
        (64, 64, 64, 8, 3, 1),
        (64, 64, 128, 8, 3, 2),
        (64, 128, 128, 8, 3, 1),
        (64, 64, 64, 4, 3, 1),
        (64, 128, 128, 4, 3, 1),
        (64, 128, 128, 2, 3, 1),
    ],
    "resnet50": [
        (16, 64, 64, 56, 3, 1),
        (16, 128, 128, 28, 3, 1),
        (16, 256, 256, 14, 3, 1),
        (16, 512, 512, 7, 3, 1),
        (16, 128, 128, 56, 3, 2),
        (16, 256, 256, 28, 3, 2),
        (16, 64, 256, 56, 1, 1),
        (16, 256, 64, 56, 1, 1),
        (16, 512, 128, 28, 1, 1),
        (16, 1024, 256, 14, 1, 1),
        (16, 2048, 512, 7, 1, 1),
    ],
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def forward(x: Tensor, weight: Tensor, window: tuple) -> dict[str, Callable[[], Tensor]]:
    """Both sides in both memory formats."""
    pattern, values = Pattern.from_dense(weight)
    last = torch.channels_last
    x_last, weight_last = x.to(memory_format=last), weight.to(memory_format=last)
    kernel, stride, padding = window
    return {
        "dense nchw": lambda: conv2d(x, weight, None, stride, padding),
        "dense channels_last": lambda: conv2d(x_last, weight_last, None, stride, padding),
        "sparse nchw": lambda: sparse_conv2d(x, values, *pattern.tensors(), None, kernel, stride, padding),
        "sparse channels_last": lambda: sparse_conv2d(
            x_last, values, *pattern.tensors(), None, kernel, stride, padding
        ),
    }


def backward(x: Tensor, weight: Tensor, window: tuple) -> dict[str, Callable[[], object]]:
    """Input and weight gradient together, NCHW for the sparse side."""
    pattern, values = Pattern.from_dense(weight)
    kernel, stride, padding = window
    dy = torch.randn_like(conv2d(x, weight, None, stride, padding))
    rest = (None, stride, padding, (1, 1), False, (0, 0), 1, (True, True, False))
    last = [t.to(memory_format=torch.channels_last) for t in (dy, x, weight)]
    size = (x.shape[2], x.shape[3])

    def sparse() -> tuple[Tensor, Tensor]:
        parts = pattern.tensors()
        dx = sparse_conv2d_input_grad(dy, values, *parts, size, kernel, stride, padding)
        return dx, sparse_conv2d_weight_grad(x, dy, *parts, kernel, stride, padding)

    return {
        "dense backward nchw": lambda: torch.ops.aten.convolution_backward(dy, x, weight, *rest),
        "dense backward channels_last": lambda: torch.ops.aten.convolution_backward(*last, *rest),
        "sparse backward nchw": sparse,
    }


def compare(args: argparse.Namespace, shape: tuple[int, ...], sparsity: float) -> None:
    """Time one layer and report every contender, with the best sparse over the best dense."""
    n, c, o, side, k, s = shape
    dtype = DTYPES[args.dtype]
    weight = torch.randn(o, c, k, k) * (torch.rand(o, c, k, k) >= sparsity)
    x = torch.randn(n, c, side, side, device=args.device).to(dtype)
    window = ((k, k), (s, s), (k // 2, k // 2))
    make = backward if args.backward else forward
    with torch.inference_mode():
        times = measure(make(x, weight.to(args.device, dtype), window), args)
    pixels = n * ((side - 1) // s + 1) ** 2
    passes = 2 if args.backward else 1
    for name, time in times.items():
        live = int(weight.count_nonzero()) if name.startswith("sparse") else weight.numel()
        record = {"op": "sparse_conv2d", "shape": shape, "dtype": args.dtype, "sparsity": sparsity, "contender": name}
        report(args, **record, flops=2.0 * passes * live * pixels, **time)
    best = {kind: min(t["ms"] for name, t in times.items() if name.startswith(kind)) for kind in ("dense", "sparse")}
    print(f"{'':16} {shape!s:28} sparsity {sparsity:.1%}: sparse is {best['dense'] / best['sparse']:.1f} times faster")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--shapes", choices=SHAPES, nargs="+", default=list(SHAPES))
    options.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.95, 0.98, 0.99])
    options.add_argument("--dtype", choices=DTYPES, default="float32")
    options.add_argument("--backward", action="store_true", help="both gradients instead of the forward pass")
    args = start(options)
    for name in args.shapes:
        for shape in SHAPES[name]:
            for sparsity in args.sparsity:
                compare(args, shape, sparsity)
