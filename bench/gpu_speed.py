"""The benchmarks of one GPU run, most important first; each measures its contenders in turn in the same rounds."""

import argparse
import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench import common, conv, select, step, weights
from bench.gpu import append
from bench.gpu_graphs import captured, warmed_up
from sparse_ops.nn import SparseConv2d, SparseLinear

Runs = dict[str, Callable[[], Any]]
Wrap = Callable[[Callable[[], Any]], Callable[[], Any]]
FAST = ("inplace", "torch-fused", "torch-foreach", "sweep-none", "sweep-l2", "sweep-hypersparse", "-masked")
SECONDS = 12.0  # that the rounds of one benchmark may take
OURS = ("sweep", "sparse")


def options(args: argparse.Namespace, **more: Any) -> argparse.Namespace:
    """What bench.common asks for, beside the arguments of this run."""
    made = copy.copy(args)
    made.__dict__.update({"rounds": 15, "seconds": 0.02, **more})
    return made


def able(runs: Runs, args: argparse.Namespace, op: str, shape: str) -> Runs:
    """The contenders that run here; a record says why another does not. What is ours must run, or find no memory."""
    left = {}
    for name, run in runs.items():
        try:
            run()
            torch.cuda.synchronize()
        except torch.OutOfMemoryError:
            reason = "memory"
        except Exception as error:
            if any(word in name for word in OURS) and "torch" not in name:
                raise
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        else:
            left[name] = run
            continue
        torch.cuda.empty_cache()
        append(args.json, section="speed", name=f"{op} {shape} {name}", status="skipped", detail=reason[:300])
    return left


def timed(runs: Runs, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """As many rounds as SECONDS allow, 3 to 15."""
    chosen = options(args)
    once = sum(max(common.seconds(run, 1, args.device), chosen.seconds) for run in runs.values())
    chosen.rounds = int(min(15, max(3, SECONDS / once)))
    return common.measure(runs, chosen)


def steps(args: argparse.Namespace, op: str, size: str, rule: str, wanted: Sequence[str], wrap: Wrap) -> None:
    """Make, wrap, time and report those contenders of bench.step that are wanted and fit into memory."""
    made = step.Contenders(step.SIZES[size](), args.device, rule)
    shared = {"op": op, "shape": size, "dtype": "float32", "sparsity": step.SPARSITY}
    ready: Runs = {}

    def first_time(name: str, make: Callable[[], Callable[[], Any]]) -> Callable[[], None]:
        def run() -> None:
            ready[name] = wrap(make())
            ready[name]()

        return run

    for name, (per_weight, make) in made.all().items():
        if not any(name.endswith(word) for word in wanted):
            continue
        needed, free = per_weight * made.numel, common.free_bytes(args.device)
        if needed > 0.9 * free:
            common.skip(args, f"needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free", contender=name, **shared)
        elif not able({name: first_time(name, make)}, args, op, size):
            ready.pop(name, None)
    results = timed(ready, args)
    each = 2 if wrap is pair_in_graph else 1
    floor = next((r["ms"] for name, r in results.items() if name.endswith("inplace")), None)
    for name, result in results.items():
        share = {} if floor is None else {"floor_share": floor / result["ms"]}
        result["ms"] /= each
        bytes_moved = made.numel * 4 * (5 if rule == "sgd" else 7)
        common.report(args, bytes=bytes_moved, contender=name, weights=made.numel, **shared, **share, **result)


def pair_in_graph(run: Callable[[], Any]) -> Callable[[], Any]:
    """The replay of two steps, one of each sign of the learning rate: the device's time without the host's."""

    def pair() -> None:
        run()
        run()

    warmed_up(pair, 2)
    return captured(pair).replay


def optimiser_step(args: argparse.Namespace, size: str, rule: str) -> None:
    """What `python -m bench step` compares; called from Python, so that a small network shows the host's time."""
    slow = ["pytorch-best", "authors"] if size == "resnet50" else []  # they sort or select, for seconds from 1e8 on
    steps(args, f"step-{rule}", size, rule, [*FAST, *slow], lambda run: run)


def captured_step(args: argparse.Namespace, size: str) -> None:
    steps(args, "step-sgd-graph", size, "sgd", FAST, pair_in_graph)


def selection(args: argparse.Namespace, n: int) -> None:
    """From cold, against the ways that torch has."""
    w = torch.randn(n, device=args.device)
    zeros = round(0.98 * n)
    for op, runs in select.contenders(w, zeros, args.device).items():
        if op == "kth_magnitude":
            runs["torch.sort"] = lambda: w.abs().sort().values[zeros - 1]
        runs = able(runs, args, op, str(n))
        if op == "kth_magnitude":
            found = {name: float(run()) for name, run in runs.items()}
            assert len(set(found.values())) == 1, f"the contenders disagree: {found}"
        for name, times in timed(runs, args).items():
            entry = {"op": op, "shape": f"{n} normal", "dtype": "float32", "sparsity": 0.98, "contender": name}
            common.report(args, bytes=4 * n, **entry, **times)


def linear_products(args: argparse.Namespace, dtype: str, backward: bool) -> None:
    """Sparse linear layers against cuBLAS (dense) and cuSPARSE (torch.sparse)."""
    for (M, K, N), sparsity in (((4096, 4096, 1024), 0.98), ((4096, 4096, 1024), 0.9), ((1024, 1024, 64), 0.98)):
        torch.manual_seed(0)
        weight = weights.draw((M, K), round(sparsity * M * K)).to(args.device, common.DTYPES[dtype])
        dense = torch.nn.Linear(K, M, device=args.device, dtype=weight.dtype)
        dense.weight = torch.nn.Parameter(weight)
        sparse = SparseLinear.from_dense(dense)
        x = torch.randn(N, K, device=args.device, dtype=weight.dtype)
        dy = torch.randn(N, M, device=args.device, dtype=weight.dtype)
        layers = {"dense": dense, "sparse": sparse}
        if backward:
            runs: Runs = {name: functools.partial(_gradients, layer, x, dy) for name, layer in layers.items()}
        else:
            csr, columns = weight.to_sparse_csr(), x.t().contiguous()
            runs = {name: functools.partial(layer, x) for name, layer in layers.items()}
            runs["torch.sparse csr"] = lambda csr=csr, columns=columns: csr @ columns
        op = "linear" + " and its gradients" * backward
        with torch.inference_mode(not backward):
            results = timed(able(runs, args, op, f"{(M, K, N)} {dtype}"), args)
        for name, times in results.items():
            live = M * K if name == "dense" else int(weight.count_nonzero())
            entry = {"op": op, "shape": (M, K, N), "dtype": dtype, "sparsity": sparsity, "contender": name}
            common.report(args, flops=2.0 * (3 if backward else 1) * live * N, **entry, **times)


def convolution(args: argparse.Namespace, dtype: str, backward: bool) -> None:
    """Sparse convolutions against cuDNN in both memory formats."""
    for shape in conv.SHAPES["resnet50"][:8:2]:
        size = shape.out_channels, shape.in_channels, shape.kernel, shape.kernel
        torch.manual_seed(0)
        weight = weights.draw(size, round(0.98 * torch.Size(size).numel())).to(args.device, common.DTYPES[dtype])
        x = torch.randn(16, shape.in_channels, shape.side, shape.side).to(weight)
        dense = conv.module(weight, weight.new_zeros(shape.out_channels), shape)
        layers = {"dense": dense, "sparse": SparseConv2d.from_dense(dense)}
        dy = torch.randn_like(dense(x).detach())
        runs: Runs = {}
        for layout in ("nchw", "channels_last"):
            own, grad = (conv.LAYOUTS[layout](t.clone()) for t in (x, dy))
            for name, layer in layers.items():
                run = functools.partial(layer, own)
                runs[f"{name} {layout}"] = functools.partial(_gradients, layer, own, grad) if backward else run
        op = "sparse_conv2d" + " and its gradients" * backward
        with torch.inference_mode(not backward):
            results = timed(able(runs, args, op, f"{shape} {dtype}"), args)
        for name, times in results.items():
            live = weight.numel() if name.startswith("dense") else int(weight.count_nonzero())
            flops = 2.0 * (3 if backward else 1) * live * dy.numel() / shape.out_channels
            entry = {"op": op, "shape": str(shape), "dtype": dtype, "sparsity": 0.98, "contender": name}
            common.report(args, flops=flops, **entry, **times)


def _gradients(layer: torch.nn.Module, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, ...]:
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(layer(leaf), [leaf, *layer.parameters()], dy)


def benchmarks() -> list[tuple[str, Callable[[argparse.Namespace], None], float]]:
    """(name, run, about how many seconds)."""
    made: list[tuple[str, Callable[[argparse.Namespace], None], float]] = []

    def add(name: str, run: Callable[..., None], seconds: float, **given: Any) -> None:
        made.append((name, functools.partial(run, **given), seconds))

    for rule in ("sgd", "adamw"):
        for size in ("resnet50", "100m", "1b"):
            add(f"step {size} {rule}", optimiser_step, 20, size=size, rule=rule)
    for size in ("resnet20", "resnet50"):
        add(f"captured step {size}", captured_step, 10, size=size)
    for n in (25_600_000, 100_000_000, 1_000_000_000):
        add(f"select {n}", selection, 10, n=n)
    for dtype in ("float32", "bfloat16"):
        for backward in (False, True):
            add(f"linear {dtype}{' backward' * backward}", linear_products, 8, dtype=dtype, backward=backward)
    for backward in (False, True):
        add(f"conv{' backward' * backward}", convolution, 10, dtype="float32", backward=backward)
    add("conv bfloat16", convolution, 10, dtype="bfloat16", backward=False)
    return made
