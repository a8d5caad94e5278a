"""SparseLinear against every dense and sparse contender on this machine: forward, and forward + backward.

    python -m bench linear --json bench/results/linear.jsonl
    python -m bench linear --sparsity 0.9 0.98 --size 1024x1024 --batch 64 1 --threads 1 2 --json FILE
    python -m bench linear --network minilm --batch 128 --mask erk --json FILE
    python -m bench linear --model pruned.safetensors matrix.smtx --batch 64 --json FILE
    python -m bench linear --plot docs/kernels/linear.svg --json FILE

All contenders of a line are timed in turn in one process (bench/rivals.py has them; those that are not installed are
named with the reason). x is (batch, in_features) as users hold it; batch-last means x and y with the batch innermost.
A record has the greatest error against float64, relative to what rounding the dtype may cost, and its tolerance; the
table compares ours with the best dense contender of any dtype, then float32 with float32. bytes: parameters and buffers
of the converted layer. prepare: Pattern.from_dense, in forward passes of the best dense contender.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import rivals, speedups, weights
from bench.common import measure, parser, report, skip, start
from bench.weights import Weight
from sparse_ops.formats import Pattern
from sparse_ops.nn import SparseLinear

# out_features, in_features, batch
SHAPES = [(1024, 1024, 1024), (3072, 768, 128), (4096, 4096, 64), (4096, 4096, 1), (512, 512, 8)]
SPARSITIES = [0.7, 0.8, 0.9, 0.95, 0.98, 0.99]
EPSILON = {"float32": 2.0**-23, "half": 2.0**-7}


def size(text: str) -> tuple[int, int]:
    """1024x4096: out_features and in_features."""
    rows, columns = text.split("x")
    return int(rows), int(columns)


def kind(name: str) -> str:
    """What speedups calls a contender."""
    if name.startswith("sparse_ops"):
        return "ours"
    return "dense" if "dense" in name else "other"


def error(y: Tensor, expected: Tensor, magnitude: Tensor) -> float:
    """The greatest distance from float64, over the sum of the magnitudes of what was added."""
    return float(((y.detach().double() - expected).abs() / magnitude.clamp_min(1e-30)).max())


def tolerance(relative: float, terms: int) -> str | None:
    """The strictest tolerance that an error keeps: rounding of the operands, of the sum by blocks, of the result."""
    for name, epsilon in EPSILON.items():
        if relative <= (4 + math.sqrt(terms)) * epsilon:
            return name
    return None


def compare(args: argparse.Namespace, weight: Weight, batch: int, threads: int) -> list[dict[str, Any]]:
    """Measure all contenders on one weight; the records."""
    torch.manual_seed(0)
    dense = weight.dense.flatten(1)
    (M, K), nnz = dense.shape, int(dense.count_nonzero())
    x, bias, dy = torch.randn(batch, K), torch.randn(M), torch.randn(batch, M)
    expected, most = (f(x.double()) @ f(dense.double()).T + f(bias.double()) for f in (lambda t: t, torch.abs))
    records = []
    where = {"shape": f"{M}x{K} batch {batch}", "mask": weight.mask, "sparsity": weight.sparsity, "threads": threads}
    for work in args.work:
        torch._dynamo.reset()
        with torch.inference_mode(work == "forward"):
            if work == "forward":
                found = rivals.forward(dense, x, bias, not args.no_compile)
            else:
                found = rivals.training(dense, x, bias, dy, not args.no_compile)
            for name, reason in found.skipped.items():
                skip(args, reason, op="linear", work=work, contender=name, **where)
            errors = {}
            for name, run in found.runs.items():
                y = run()
                errors[name] = error(y[0] if isinstance(y, list) else y, expected, most)
            times = measure(found.runs, args)
        for name, time in times.items():
            allowed = tolerance(errors[name], K)
            if allowed is None:
                skip(args, f"wrong by {errors[name]:.1e}", op="linear", work=work, contender=name, **where)
                continue
            live = M * K if kind(name) == "dense" else nnz
            flops = 2.0 * live * batch * (1 if work == "forward" else 3)
            which = {"op": "linear", "work": work, "dtype": name.split()[1] if kind(name) != "other" else "float32"}
            rest = {"contender": name, "kind": kind(name), "tolerance": allowed, "error": errors[name]}
            records.append(report(args, **which, **where, **rest, **time, flops=flops))
    records.append(prepare(args, dense, where, records))
    return records


def prepare(args: argparse.Namespace, dense: Tensor, where: dict[str, Any], records: list[dict[str, Any]]) -> Any:
    """What it takes to make the layer, and the bytes that it holds."""
    M, K = dense.shape
    linear = nn.Linear(K, M, device="meta")
    linear.weight, linear.bias = nn.Parameter(dense), nn.Parameter(torch.zeros(M))
    layer = SparseLinear.from_dense(linear)
    held = {
        name: sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
        for name, module in (("dense_bytes", linear), ("bytes_held", layer))
    }
    time = measure({"prepare": lambda: Pattern.from_dense(dense)}, args)["prepare"]
    best = min((r["ms"] for r in records if r["kind"] == "dense" and r["work"] == "forward"), default=math.nan)
    print(f"{'':16} {where['shape']:28} prepare {time['ms'] / best:.1f} dense forward passes, bytes {held}")
    passes = {"dense_passes": None if math.isnan(best) else time["ms"] / best}
    which = {
        "op": "linear",
        "work": "prepare",
        "dtype": "float32",
        "contender": "Pattern.from_dense",
        "kind": "prepare",
    }
    return report(args, **which, **where, **held, **passes, **time)


def problems(args: argparse.Namespace) -> list[tuple[Weight, int]]:
    """(weight, batch) of each line of work."""
    if args.model:
        found = [w for path in args.model for w in weights.trained(path)]
        return [(w, batch) for w in found for batch in args.batch or [64]]
    if args.network:
        shapes = [(s, batch) for s, _ in weights.NETWORKS[args.network] for batch in args.batch or [128]]
    elif args.size or args.batch:
        shapes = [(s, batch) for s in args.size or [(1024, 1024)] for batch in args.batch or [1024, 64, 1]]
    else:
        shapes = [((rows, columns), batch) for rows, columns, batch in SHAPES]
    of_all = weights.made([s for s, _ in shapes], args.sparsity, args.mask)
    return [(w, batch) for made in of_all for w, (_, batch) in zip(made, shapes, strict=True)]


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, several_threads=True)
    options.add_argument("--sparsity", type=float, nargs="+", default=SPARSITIES)
    options.add_argument("--size", type=size, nargs="+", metavar="OUTxIN", help="instead of the five usual problems")
    options.add_argument("--batch", type=int, nargs="+")
    options.add_argument("--network", choices=weights.NETWORKS, help="the layers of a network")
    options.add_argument("--model", type=Path, nargs="+", metavar="FILE", help="weights: sparse_ops.save, .smtx")
    options.add_argument("--mask", choices=["random", "erk"], default="random")
    options.add_argument("--work", choices=["forward", "training"], nargs="+", default=["forward", "training"])
    options.add_argument("--no-compile", action="store_true", help="leave out torch.compile, seconds a line")
    options.add_argument("--plot", type=Path, metavar="FILE", help="draw the records of --json, measure nothing")
    args = start(options, argv)
    if args.plot is not None:
        if args.json is None:
            raise SystemExit("linear: --plot needs --json FILE with the records to draw")
        of_linear = [r for r in speedups.read(args.json) if r["op"] == "linear"]
        speedups.plot(of_linear, args.plot, "SparseLinear over the best dense layer")
        print(speedups.table(of_linear))
        return
    records = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for weight, batch in problems(args):
            records += compare(args, weight, batch, threads)
    print(speedups.table(records))


if __name__ == "__main__":
    main()
