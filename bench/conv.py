"""SparseConv2d against every dense contender on this machine: forward, and forward + backward.

    python -m bench conv --json bench/results/conv.jsonl
    python -m bench conv --shapes resnet50 --sparsity 0.95 0.98 --mask erk --batch 16 --threads 1 2 --json FILE
    python -m bench conv --model pruned.safetensors --side 28 --json FILE
    python -m bench conv --plot docs/kernels/conv.svg --json FILE

All contenders of a line are timed in turn in one process; one that cannot run here is named with the reason. Layouts
are nchw and channels_last, as users hold images, and batch-last, in which sparse layers hand them on. A record has the
greatest error against float64, relative to what rounding the dtype may cost, and its tolerance; the table compares
ours with the best dense contender of any dtype, then float32 with float32. Padding is half the kernel.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from bench import speedups, weights
from bench.common import dense_dtypes, measure, parser, report, skip, start
from bench.linear import error, kind, tolerance
from bench.rivals import Contenders, compiled
from sparse_ops.layouts import batch_last
from sparse_ops.nn import SparseConv2d


@dataclasses.dataclass(frozen=True)
class Shape:
    """Channels, the side of the image, kernel and stride of a layer."""

    in_channels: int
    out_channels: int
    side: int
    kernel: int
    stride: int = 1

    def __str__(self) -> str:
        window = f"{self.kernel}x{self.kernel}/{self.stride}"
        return f"{self.in_channels}-{self.out_channels} {window} {self.side}x{self.side}"


SHAPES = {
    "resnet50": [
        *(Shape(c, c, side, 3) for c, side in ((64, 56), (128, 28), (256, 14), (512, 7))),
        *(Shape(c, c, side, 3, 2) for c, side in ((128, 56), (256, 28), (512, 14))),
        Shape(64, 256, 56, 1),
        Shape(256, 64, 56, 1),
        Shape(512, 128, 28, 1),
        Shape(1024, 256, 14, 1),
        Shape(2048, 512, 7, 1),
        Shape(256, 512, 56, 1, 2),
    ],
    "large": [Shape(64, 64, 56, 5), Shape(64, 64, 28, 7), Shape(128, 128, 28, 5, 2)],
    "demo": [
        *(Shape(c, c, 8, 3) for c in (32, 64, 128)),
        Shape(64, 128, 8, 3, 2),
        *(Shape(c, c, 4, 3) for c in (64, 128)),
    ],
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nchw": Tensor.contiguous,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "batch-last": batch_last,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def prepacked(x: Tensor, weight: Tensor, bias: Tensor, shape: Shape) -> Callable[[], Tensor]:
    """oneDNN's convolution with the weight in its own blocked form, packed for this batch: what freezing gives."""
    window = [shape.kernel // 2] * 2, [shape.stride] * 2, [1, 1], 1
    packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *window, list(x.shape))
    return lambda: torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *window, "none", [], "")


def module(weight: Tensor, bias: Tensor, shape: Shape) -> nn.Conv2d:
    layer = nn.Conv2d(
        shape.in_channels, shape.out_channels, shape.kernel, shape.stride, shape.kernel // 2, device="meta"
    )
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


def forward(
    shape: Shape, weight: Tensor, x: Tensor, bias: Tensor, dtypes: list[str], compile_dense: bool
) -> Contenders:
    """y alone, to be run in inference mode; weight, x and bias are float32 and made half where a name says so."""
    found = Contenders()
    run = functools.partial(conv2d, stride=shape.stride, padding=shape.kernel // 2)
    for dtype_name, dtype in DTYPES.items():
        for layout in ("nchw", "channels_last") if dtype_name in dtypes else ():
            own = [LAYOUTS[layout](x.to(dtype)), LAYOUTS[layout](weight.to(dtype)), bias.to(dtype)]
            name = f"dense {dtype_name} {layout}"
            found.add(name, lambda own=own: functools.partial(run, *own))
            if layout == "channels_last":
                found.add(f"{name} prepacked", functools.partial(prepacked, *own, shape))
                if compile_dense:
                    found.add(f"{name} compiled", functools.partial(compiled, run, *own))
        layer = SparseConv2d.from_dense(module(weight, bias, shape)).to(dtype).eval()
        for layout, laid_out in LAYOUTS.items():
            given = laid_out(x.to(dtype))
            found.add(f"sparse_ops {dtype_name} {layout}", lambda layer=layer, x=given: functools.partial(layer, x))
    return found


def training(
    shape: Shape,
    weight: Tensor,
    x: Tensor,
    bias: Tensor,
    dy: Tensor,
    dtypes: list[str],
    compile_dense: bool,
) -> Contenders:
    """y, then the gradients of x, of the live weights (dense contenders mask theirs) and of the bias, given dy."""
    found = Contenders()
    mask = weight != 0

    def gradients(layer: nn.Module, ready: Callable[..., Tensor], x: Tensor, dy: Tensor) -> list[Tensor]:
        y = ready(x)
        dx, dw, db = torch.autograd.grad(y, [x, *layer.parameters()], dy)
        return [y, dx, dw.mul_(mask) if dw.dim() == 4 else dw, db]

    for dtype_name, dtype in DTYPES.items():
        for layout, laid_out in LAYOUTS.items():
            given = laid_out(x.to(dtype, copy=True)).requires_grad_(), laid_out(dy.to(dtype))
            layer = SparseConv2d.from_dense(module(weight, bias, shape)).to(dtype)
            name = f"{dtype_name} {layout}"
            found.add(f"sparse_ops {name}", functools.partial(functools.partial, gradients, layer, layer, *given))
            if layout == "batch-last" or dtype_name not in dtypes:
                continue
            dense = module(LAYOUTS[layout](weight.to(dtype)), bias.to(dtype), shape)
            found.add(f"dense {name}", functools.partial(functools.partial, gradients, dense, dense, *given))
            if compile_dense and layout == "channels_last":
                ready = torch.compile(dense, dynamic=False)
                make = functools.partial(functools.partial, gradients, dense, ready, *given)
                found.add(f"dense {name} compiled", make)
    return found


def compare(
    args: argparse.Namespace, shape: Shape, weight: weights.Weight, batch: int, threads: int
) -> list[dict[str, Any]]:
    """Measure all contenders on one layer; the records."""
    torch.manual_seed(0)
    live, n_terms = int(weight.dense.count_nonzero()), weight.dense[0].numel()
    x, bias = torch.randn(batch, shape.in_channels, shape.side, shape.side), torch.randn(shape.out_channels)
    run = functools.partial(conv2d, stride=shape.stride, padding=shape.kernel // 2)
    expected, most = (run(*(f(t.double()) for t in (x, weight.dense, bias))) for f in (lambda t: t, torch.abs))
    dy = torch.randn(expected.shape)
    pixels = batch * expected.shape[2] * expected.shape[3]
    where = {"shape": f"{shape} batch {batch}", "mask": weight.mask, "sparsity": weight.sparsity, "threads": threads}
    records = []
    for work in args.work:
        torch._dynamo.reset()
        of_dense = args.dense_dtype, not args.no_compile
        with torch.inference_mode(work == "forward"):
            if work == "forward":
                found = forward(shape, weight.dense, x, bias, *of_dense)
            else:
                found = training(shape, weight.dense, x, bias, dy, *of_dense)
            for name, reason in found.skipped.items():
                skip(args, reason, op="conv", work=work, contender=name, **where)
            errors = {}
            for name, contender in found.runs.items():
                y = contender()
                errors[name] = error(y[0] if isinstance(y, list) else y, expected, most)
            times = measure(found.runs, args)
        for name, time in times.items():
            allowed = tolerance(errors[name], n_terms)
            if allowed is None:
                skip(args, f"wrong by {errors[name]:.1e}", op="conv", work=work, contender=name, **where)
                continue
            values = weight.dense.numel() if kind(name) == "dense" else live
            flops = 2.0 * values * pixels * (1 if work == "forward" else 3)
            which = {"op": "conv", "work": work, "dtype": name.split()[1]}
            rest = {"contender": name, "kind": kind(name), "tolerance": allowed, "error": errors[name]}
            records.append(report(args, **which, **where, **rest, **time, flops=flops))
    return records


def problems(args: argparse.Namespace) -> Iterator[tuple[Shape, weights.Weight]]:
    """The layers of --model, or those of --shapes with masks of their own."""
    for path in args.model or []:
        for weight in weights.trained(path):
            if weight.dense.dim() == 4 and weight.dense.shape[2] == weight.dense.shape[3]:
                out, channels, kernel, _ = weight.dense.shape
                yield Shape(channels, out, args.side, kernel), weight
    for name in [] if args.model else args.shapes:
        sizes = [(s.out_channels, s.in_channels, s.kernel, s.kernel) for s in SHAPES[name]]
        for made in weights.made(sizes, args.sparsity, args.mask):
            yield from zip(SHAPES[name], made, strict=True)


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, several_threads=True)
    options.add_argument("--shapes", choices=SHAPES, nargs="+", default=["resnet50", "large"])
    options.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.95, 0.98, 0.99])
    options.add_argument("--batch", type=int, nargs="+", default=[16])
    options.add_argument("--mask", choices=["random", "erk"], default="random")
    options.add_argument("--model", type=Path, nargs="+", metavar="FILE", help="weights of sparse_ops.save")
    options.add_argument("--side", type=int, default=28, help="of the images for --model")
    options.add_argument("--work", choices=["forward", "training"], nargs="+", default=["forward", "training"])
    dense_dtypes(options)
    options.add_argument("--no-compile", action="store_true", help="leave out torch.compile, seconds a line")
    options.add_argument("--plot", type=Path, metavar="FILE", help="draw the records of --json, measure nothing")
    args = start(options, argv)
    if args.plot is not None:
        if args.json is None:
            raise SystemExit("conv: --plot needs --json FILE with the records to draw")
        of_conv = [r for r in speedups.read(args.json) if r["op"] == "conv"]
        speedups.plot(of_conv, args.plot, "SparseConv2d over the best dense convolution")
        print(speedups.table(of_conv))
        return
    records = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for shape, weight in problems(args):
            for batch in args.batch:
                records += compare(args, shape, weight, batch, threads)
    print(speedups.table(records))


if __name__ == "__main__":
    main()
