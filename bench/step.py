"""An optimiser step with penalty and exact threshold, in one sweep, against PyTorch's optimisers.

    python -m bench step --size resnet50 --json bench/results/step.jsonl

Momentum 0.9, weight decay 1e-4, sparsity 0.98 over the matrices and convolutions. A sweep-hypersparse step also finds
the next exact threshold; the masked line carries a random mask of 50 %. The gradients keep their values and the
learning rate alternates in sign, so that weights stay what they are over thousands of steps. gbs counts the bytes that
the rule must move: weight, gradient and state read, weight and state written. `inplace` is one in-place pass over as
many bytes, the floor.
"""

import itertools
from collections.abc import Callable

import torch

from bench.common import measure, parser, report, start
from sparse_ops.ops.regularized_adamw import regularized_adamw_
from sparse_ops.ops.regularized_sgd import regularized_sgd_
from sparse_ops.ops.sweep_finish import sweep_finish_

SPARSITY, DECAY, LR = 0.98, 1e-4, 1e-3


def resnet20() -> list[tuple[int, ...]]:
    """65 tensors, 0.27 M weights: CIFAR's thin ResNet-20, identity shortcuts."""
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


class Sweep:
    """One optimiser of ours: `step` is the sweep and, where a threshold is tracked, its finish."""

    def __init__(self, shapes, device: str, penalty: str, rule: str = "sgd", track: bool = False, masked: bool = False):
        self.weights = [torch.randn(shape, device=device) * 0.02 for shape in shapes]
        self.grads = [torch.randn(shape, device=device) * 0.01 for shape in shapes]
        self.states = [[torch.zeros_like(w) for w in self.weights] for _ in range(1 if rule == "sgd" else 2)]
        self.steps = [torch.tensor(10.0, device=device) for _ in shapes]
        prunable = penalty != "none" or track
        self.scopes = [0 if prunable and w.dim() > 1 else -1 for w in self.weights]
        n = sum(w.numel() for w, scope in zip(self.weights, self.scopes, strict=True) if scope == 0)
        self.ranks = [int(SPARSITY * n) + 1 if track else 0]
        empty = torch.empty(0, dtype=torch.uint8, device=device)
        random = [
            torch.randint(0, 256, ((w.numel() + 7) // 8,), dtype=torch.uint8, device=device) for w in self.weights
        ]
        self.masks = [m if s == 0 else empty for m, s in zip(random, self.scopes, strict=True)] if masked else []
        options = {"dtype": torch.float64, "device": device}
        self.coefficients = torch.tensor([[1e-5, 0, 0, 0]], **options)
        self.brackets, self.statistics = torch.full((1, 2), float("inf"), **options), torch.zeros(1, 7, **options)
        self.candidates = torch.empty(1, n // 64 + 1024, device=device)
        self.report = torch.zeros(1, 8, **options)
        self.tables = self.coefficients, self.brackets, self.statistics, self.candidates
        self.penalty, self.rule, self.signs = penalty, rule, itertools.cycle((1, -1))
        if track:
            sweep_finish_(self.weights, self.scopes, self.ranks, *self.tables, self.report, exact=True)

    def step(self) -> None:
        shared = self.masks, [], self.scopes, *self.tables
        settings = {"penalty": self.penalty, "lr": LR * next(self.signs), "weight_decay": DECAY}
        if self.rule == "sgd":
            regularized_sgd_(self.weights, self.grads, *self.states, *shared, momentum=0.9, **settings)
        else:
            regularized_adamw_(self.weights, self.grads, *self.states, [], self.steps, *shared, **settings)
        if self.ranks[0]:
            sweep_finish_(self.weights, self.scopes, self.ranks, *self.tables, self.report)


def authors_gradients(weights: list[torch.Tensor]) -> None:
    """The penalty as published (arXiv 2308.07163): sort all magnitudes, differentiate the loss by autograd."""
    magnitudes = torch.cat([w.abs().flatten() for w in weights])
    threshold = magnitudes.detach().sort().values[int(SPARSITY * magnitudes.numel())]
    tanh = torch.tanh(0.6585 / threshold * magnitudes)
    total = magnitudes.sum()
    (1e-5 * (total * tanh.sum() / tanh.sum().detach() - total)).backward()


def torch_step(shapes, device: str, optimizer: type, penalty: bool = False, **options) -> Callable[[], None]:
    weights = [(torch.randn(shape, device=device) * 0.02).requires_grad_() for shape in shapes]
    for w in weights:
        w.grad = torch.randn_like(w) * 0.01
    made = optimizer(weights, lr=LR, weight_decay=DECAY, **options)
    matrices = [w for w in weights if w.dim() > 1]
    signs = itertools.cycle((1, -1))

    def step() -> None:
        if penalty:
            authors_gradients(matrices)
        made.param_groups[0]["lr"] = LR * next(signs) if optimizer is torch.optim.SGD else LR
        made.step()

    return step


def contenders(shapes, device: str, prefix: str, everything: bool) -> dict[str, Callable[[], None]]:
    rule, optimizer = ("adamw", torch.optim.AdamW) if prefix else ("sgd", torch.optim.SGD)
    extra = {} if prefix else {"momentum": 0.9}
    numel = sum(torch.Size(shape).numel() for shape in shapes)
    floor = torch.ones(numel * (7 if prefix else 5) // 2, device=device)
    made = {
        "inplace": lambda: floor.mul_(1.0),
        "torch-fused": torch_step(shapes, device, optimizer, fused=True, **extra),
        "torch-foreach": torch_step(shapes, device, optimizer, foreach=True, **extra),
        "torch-default": torch_step(shapes, device, optimizer, fused=False, foreach=device == "cuda", **extra),
        "sweep-none": Sweep(shapes, device, "none", rule).step,
        "sweep-l2": Sweep(shapes, device, "l2", rule).step,
        "sweep-hypersparse": Sweep(shapes, device, "hypersparse", rule, track=True).step,
        "sweep-hypersparse-masked": Sweep(shapes, device, "hypersparse", rule, track=True, masked=True).step,
    }
    if everything and not prefix:
        made["authors"] = torch_step(shapes, device, optimizer, penalty=True, fused=True, **extra)
    return {prefix + name: run for name, run in made.items()}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--size", default="resnet50", choices=SIZES)
    options.add_argument("--rule", default="sgd", choices=["sgd", "adamw"])
    options.add_argument("--no-authors", action="store_true", help="leave out the published step, seconds each")
    args = start(options)
    shapes = SIZES[args.size]()
    numel = sum(torch.Size(shape).numel() for shape in shapes)
    prefix = "adamw-" if args.rule == "adamw" else ""
    runs = contenders(shapes, args.device, prefix, not args.no_authors)
    results = measure(runs, args)
    floor = results[prefix + "inplace"]["ms"]
    for name, result in results.items():
        report(
            args,
            bytes=numel * 4 * (7 if prefix else 5),
            op=f"step-{args.rule}",
            shape=args.size,
            dtype="float32",
            sparsity=SPARSITY,
            contender=name,
            floor_share=floor / result["ms"],
            **result,
        )
        owner = getattr(runs[name], "__self__", None)
        if isinstance(owner, Sweep) and owner.ranks[0]:
            line = owner.report[0].tolist()
            print(f"{'':46}{line[6]:.0f} steps, {line[5]:.0f} exact passes, {line[3]:.0f} candidates last")
