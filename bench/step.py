"""An optimiser step with penalty and exact threshold, in one sweep, against PyTorch's optimisers.

    python -m bench step --size resnet50 --json bench/results/step.jsonl
    python -m bench step --plot docs/kernels/step.svg --json bench/results/step.jsonl

Whole `optimizer.step()` calls: momentum 0.9, weight decay 1e-4, sparsity 0.98 over the matrices and convolutions. A
sweep-hypersparse step also finds the next exact threshold; the masked line carries a random mask of 50 %. authors is
the published way (sort, autograd), pytorch-best the best that plain PyTorch can do (closed form compiled over one flat
buffer, kthvalue, fused SGD). The gradients keep their values and the learning rate alternates in sign, so that weights
stay what they are over thousands of steps. gbs counts the bytes that the rule must move: weight, gradient and state
read, weight and state written. `inplace` is one in-place pass over as many bytes, the floor.

threshold-share (--pairs 200) is what collecting and selecting add to a HyperSparse step: pairs of steps with and
without, the median share of the step and its 95 % confidence interval.
"""

import itertools
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from bench.common import free_bytes, measure, parser, report, seconds, skip, start
from sparse_ops import masks, optim
from sparse_ops.optim import Sweep, attach

SPARSITY, DECAY, LR, STRENGTH = 0.98, 1e-4, 1e-3, 1e-5


def resnet20() -> list[tuple[int, ...]]:
    """59 tensors, 0.27 M weights: CIFAR's thin ResNet-20, identity shortcuts."""
    shapes: list[tuple[int, ...]] = [(16, 3, 3, 3), (16,), (16,)]
    channels = 16
    for width in (16, 32, 64):
        for _ in range(3):
            shapes += [(width, channels, 3, 3), (width,), (width,), (width, width, 3, 3), (width,), (width,)]
            channels = width
    return [*shapes, (10, 64), (10,)]


def resnet50() -> list[tuple[int, ...]]:
    """161 tensors, 25.6 M weights."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for width, blocks in zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True):
        for block in range(blocks):
            convolutions = [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                convolutions.append((4 * width, channels, 1, 1))
            shapes += itertools.chain.from_iterable((shape, shape[:1], shape[:1]) for shape in convolutions)
            channels = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def transformer(width: int, depth: int, words: int) -> list[tuple[int, ...]]:
    """A decoder: its embedding, and per block four matrices with biases and two norms."""
    block = [(3 * width, width), (3 * width,), (width, width), (width,), (4 * width, width), (4 * width,)]
    block += [(width, 4 * width), (width,), *[(width,)] * 4]
    return [(words, width), *block * depth, (width,), (width,)]


SIZES = {
    "resnet20": resnet20,
    "resnet50": resnet50,
    "100m": lambda: transformer(768, 12, 20_000),
    "1b": lambda: transformer(2048, 18, 50_000),
}


class Contenders:
    """Steps over the same weights and the same gradients; every contender has weights and state of its own."""

    def __init__(self, shapes: list[tuple[int, ...]], device: str, rule: str) -> None:
        self.shapes, self.device, self.rule = shapes, device, rule
        self.weights = [torch.randn(shape, device=device) * 0.02 for shape in shapes]
        self.grads = [torch.randn(shape, device=device) * 0.01 for shape in shapes]
        self.numel = sum(w.numel() for w in self.weights)
        self.extra = {"momentum": 0.9} if rule == "sgd" else {}

    def parameters(self) -> list[torch.nn.Parameter]:
        made = [torch.nn.Parameter(w.clone()) for w in self.weights]
        for p, grad in zip(made, self.grads, strict=True):
            p.grad = grad
        return made

    def stepper(self, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        signs, group = itertools.cycle((1, -1)), optimizer.param_groups[0]

        def step() -> None:
            group["lr"] = LR * next(signs)
            optimizer.step()

        return step

    def inplace(self) -> Callable[[], None]:
        floor = torch.ones(self.numel * (7 if self.rule == "adamw" else 5) // 2, device=self.device)
        return lambda: floor.mul_(1.0)

    def fused(self, made: list[torch.nn.Parameter]) -> Callable[[], None]:
        kind = torch.optim.SGD if self.rule == "sgd" else torch.optim.AdamW
        return self.stepper(kind(made, lr=LR, weight_decay=DECAY, fused=True, **self.extra))

    def torch(self, **options: bool) -> Callable[[], None]:
        kind = torch.optim.SGD if self.rule == "sgd" else torch.optim.AdamW
        return self.stepper(kind(self.parameters(), lr=LR, weight_decay=DECAY, **self.extra, **options))

    def sweep(self, penalty: str, masked: bool = False, threshold: bool = True) -> Callable[[], None]:
        made = self.parameters()
        kind = optim.SGD if self.rule == "sgd" else optim.AdamW
        optimizer = kind(made, lr=LR, weight_decay=DECAY, **self.extra)
        if penalty != "none":
            sweep = Sweep({f"{i}": p for i, p in enumerate(made) if p.dim() > 1})
            attach(optimizer, sweep)
            sweep.set_penalty(penalty, STRENGTH)
            if penalty == "hypersparse":
                sweep.track(SPARSITY)
            if masked:
                random = {name: torch.rand_like(w) < 0.5 for name, w in sweep.weights.items()}
                sweep.set_masks({name: masks.PackedMask.from_dense(keep) for name, keep in random.items()})
            step = self.stepper(optimizer)
            step()
            if (
                not threshold
            ):  # the same scale and sums from here on, nothing counted inside a bracket, nothing selected
                sweep.ranks = [0]
                sweep.brackets.fill_(math.inf)
            return step
        return self.stepper(optimizer)

    def authors(self) -> Callable[[], None]:
        """As published (arXiv 2308.07163): sort all magnitudes, differentiate the loss by autograd."""
        made = self.parameters()
        for p in made:
            p.grad = p.grad.clone()
        step = self.fused(made)
        matrices = [w for w in made if w.dim() > 1]

        def run() -> None:
            magnitudes = torch.cat([w.abs().flatten() for w in matrices])
            threshold = magnitudes.detach().sort().values[int(SPARSITY * magnitudes.numel())]
            tanh = torch.tanh(0.6585 / threshold * magnitudes)
            total = magnitudes.sum()
            (STRENGTH * (total * tanh.sum() / tanh.sum().detach() - total)).backward()
            step()

        return run

    def pytorch_best(self) -> Callable[[], None]:
        """The closed form in two compiled passes over one flat buffer, torch.kthvalue, torch's fused optimiser."""
        prunable = [len(shape) > 1 for shape in self.shapes]
        n = sum(w.numel() for w, yes in zip(self.weights, prunable, strict=True) if yes)
        flat = torch.cat([w.flatten() for w, yes in zip(self.weights, prunable, strict=True) if yes])
        flat_grad = torch.cat([g.flatten() for g, yes in zip(self.grads, prunable, strict=True) if yes])
        made, first = [], 0
        for w, g, yes in zip(self.weights, self.grads, prunable, strict=True):
            p = torch.nn.Parameter(flat[first : first + w.numel()].view_as(w) if yes else w.clone())
            p.grad = flat_grad[first : first + w.numel()].view_as(w) if yes else g
            first += w.numel() if yes else 0
            made.append(p)
        step = self.fused(made)
        signs = itertools.cycle((STRENGTH, -STRENGTH))  # the gradients stay what they are
        k = int(SPARSITY * n) + 1

        @torch.compile(dynamic=False)
        def add_penalty(w: torch.Tensor, grad: torch.Tensor, s: torch.Tensor, strength: torch.Tensor) -> None:
            magnitude = w.abs()
            ratio = magnitude.sum() / torch.tanh(s * magnitude).sum()
            t = torch.tanh(s * w)
            grad.add_(torch.sign(w) * ((1 - t * t) * (strength * s * ratio)))

        @torch.no_grad()
        def run() -> None:
            s = 0.6585 / flat.abs().kthvalue(k).values
            add_penalty(flat, flat_grad, s, torch.tensor(next(signs), device=self.device))
            step()

        return run

    def all(self) -> dict[str, tuple[float, Callable[[], Callable[[], None]]]]:
        """Name -> (bytes a weight that it needs at most, what makes its step), the most important first."""
        own = 4 * (2 if self.rule == "sgd" else 3)
        made = {
            "inplace": (4 * (2.5 if self.rule == "sgd" else 3.5), self.inplace),
            "torch-fused": (own, lambda: self.torch(fused=True)),
            "sweep-none": (own, lambda: self.sweep("none")),
            "sweep-hypersparse": (own, lambda: self.sweep("hypersparse")),
            "sweep-hypersparse-masked": (own + 2, lambda: self.sweep("hypersparse", masked=True)),
            "sweep-l2": (own, lambda: self.sweep("l2")),
            "torch-foreach": (own + 8, lambda: self.torch(foreach=True)),
            "torch-default": (own, lambda: self.torch(fused=False, foreach=self.device == "cuda")),
            "pytorch-best": (own + 12, self.pytorch_best),
            "authors": (own + 48, self.authors),
        }
        prefix = "" if self.rule == "sgd" else "adamw-"
        return {prefix + name: entry for name, entry in made.items()}


def threshold_share(made: Contenders, args) -> dict[str, float]:
    """The median of (with - without) / with over pairs of HyperSparse steps, and its 95 % interval."""
    pair = made.sweep("hypersparse"), made.sweep("hypersparse", threshold=False)
    shares, with_it = [], []
    for i in range(args.pairs + 5):
        order = (0, 1) if i % 2 else (1, 0)
        took = dict(sorted((j, seconds(pair[j], 1, args.device)) for j in order))
        if i >= 5:
            shares.append((took[0] - took[1]) / took[0])
            with_it.append(took[0])
    shares.sort()
    reach = math.ceil(0.98 * math.sqrt(len(shares)))  # order statistics around the median: binomial, no shape assumed
    middle = len(shares) // 2
    low, high = shares[max(0, middle - reach)], shares[min(len(shares) - 1, middle + reach)]
    ms = 1e3 * statistics.median(with_it)
    return {"ms": ms, "share": shares[middle], "low": low, "high": high, "pairs": len(shares)}


def run_all(args) -> None:
    """Measure every contender that fits into memory, in turn, and report; then the share of the threshold."""
    made = Contenders(SIZES[args.size](), args.device, args.rule)
    shared = {"op": f"step-{args.rule}", "shape": args.size, "dtype": "float32", "sparsity": SPARSITY}
    runs: dict[str, Callable[[], None]] = {}
    if unknown := set(args.contenders or []) - set(made.all()):
        raise SystemExit(f"step: no contender {', '.join(sorted(unknown))}; there are {', '.join(made.all())}")
    for name, (per_weight, make) in made.all().items():
        if args.contenders and name not in args.contenders:
            continue
        if name.endswith("authors") and args.no_authors:
            continue
        needed, free = per_weight * made.numel, free_bytes(args.device)
        if needed > 0.9 * free:
            skip(args, f"needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free", contender=name, **shared)
            continue
        try:
            runs[name] = make()
        except torch.OutOfMemoryError as error:
            skip(args, str(error).splitlines()[0], contender=name, **shared)
    results = measure(runs, args)
    floor = next((r["ms"] for name, r in results.items() if name.endswith("inplace")), math.nan)
    for name, result in results.items():
        share = None if math.isnan(floor) else floor / result["ms"]
        moved = made.numel * 4 * (5 if args.rule == "sgd" else 7)
        report(args, bytes=moved, contender=name, weights=made.numel, floor_share=share, **shared, **result)
    runs.clear()
    if args.pairs:
        share = threshold_share(made, args)
        low, high = share["low"], share["high"]
        print(
            f"threshold: {share['share']:.2%} of a step, 95 % interval {low:.2%} to {high:.2%}, {share['pairs']} pairs"
        )
        name = "threshold-share" if args.rule == "sgd" else "adamw-threshold-share"
        report(args, contender=name, spread=high - low, **shared, **share)


# what the picture calls a contender beside its name in the table
SAID = {
    "inplace": "memory floor: one in-place pass",
    "pytorch-best": "compiled, kthvalue",
    "authors": "sort, autograd",
}


def plot(records: Path, picture: Path) -> None:
    """Time against the number of weights, one line a contender, from the latest record of each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    latest: dict[tuple[str, int], float] = {}
    for line in records.read_text().splitlines():
        record = json.loads(line)
        if record["op"] == "step-sgd" and record.get("ms") and record.get("weights"):
            latest[record["contender"], record["weights"]] = record["ms"]
    figure, axes = pyplot.subplots(figsize=(8, 6), layout="constrained")
    for name in dict.fromkeys(contender for contender, _ in latest):
        points = sorted((n, ms) for (contender, n), ms in latest.items() if contender == name)
        ours = name.startswith("sweep")
        style = {"linewidth": 2.2, "marker": "o"} if ours else {"linewidth": 1.2, "marker": ".", "linestyle": "--"}
        said = "sparse_ops" if ours else SAID.get(name)
        axes.plot(*zip(*points, strict=True), label=f"{name} ({said})" if said else name, **style)
    axes.set(xscale="log", yscale="log", xlabel="weights", ylabel="milliseconds a step")
    axes.set_title(
        "A step of SGD with momentum, float32\nSolid: sparse_ops; dashed: PyTorch, and the floor", fontsize=11
    )
    axes.grid(True, which="major", alpha=0.3)
    figure.legend(fontsize=8, ncols=2, loc="outside lower center")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--size", default="resnet50", choices=SIZES)
    options.add_argument("--rule", default="sgd", choices=["sgd", "adamw"])
    options.add_argument("--contenders", nargs="*", help="these alone, and inplace as the floor")
    options.add_argument("--no-authors", action="store_true", help="leave out the published step, seconds each")
    options.add_argument("--pairs", type=int, default=0, metavar="N", help="N pairs for the share of the threshold")
    options.add_argument("--plot", type=Path, metavar="FILE", help="draw the records of --json, measure nothing")
    args = start(options)
    if args.plot is not None:
        if args.json is None:
            raise SystemExit("step: --plot needs --json FILE with the records to draw")
        plot(args.json, args.plot)
    else:
        run_all(args)
