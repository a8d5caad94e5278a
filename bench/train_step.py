"""A whole training step with a method of sparse_ops against the plain dense one.

    python -m bench train_step --method art --json bench/results/train_step.jsonl
    python -m bench train_step --method acdc --network resnet8 --sparsity 0.95
    python -m bench train_step --fixed-mask --json bench/results/fixed_mask.jsonl   (bench/fixed_mask.py says what)

Forward, backward and optimiser on ResNet-32 of planes 32/64/128 (the network of ART's experiment; --network takes
another), random images of CIFAR's shape, float32, channels_last. dense-torch is torch.optim.SGD(fused=True);
dense-sparse_ops our SGD without a sweep; the method's lines go through the public API. art: its phases. acdc: a step of
a sparse phase, with dense and with sparse execution, zeros spread uniformly. rigl: the same, and two steps (-change) of
which one changes the mask; sparse execution changes the layers before and after that one. The optimiser's share of a
step is small: what counts is the median ratio of steps that follow one another, round by round, with its 95 % interval.
"""

import argparse
import math
import statistics
from collections.abc import Callable

import torch
from torch import nn

from bench import fixed_mask
from bench.common import dense_dtypes, parser, report, seconds, start
from sparse_ops import methods, optim
from sparse_ops.train import networks


def stepper(
    make: Callable[[nn.Module], torch.optim.Optimizer], images, labels, network: str
) -> tuple[nn.Module, Callable[[], None]]:
    """A fresh network with an optimiser, and one training step of it."""
    torch.manual_seed(0)
    model = networks.build(network, tuple(images.shape[1:]), 10).to(images.device, memory_format=torch.channels_last)
    optimizer = make(model)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return model, step


def contenders(args: argparse.Namespace, images, labels) -> dict[str, Callable[[], None]]:
    settings = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4}

    def dense(make: Callable[..., torch.optim.Optimizer], **options: bool) -> Callable[[], None]:
        return stepper(lambda m: make(m.parameters(), **settings, **options), images, labels, args.network)[1]

    def sparsified(cls: type[methods.Sparsifier], **options) -> tuple[methods.Sparsifier, Callable[[], None]]:
        held: list[optim.SGD] = []

        def ours(model: nn.Module) -> optim.SGD:
            held.append(optim.SGD(model.parameters(), **settings))
            return held[0]

        model, step = stepper(ours, images, labels, args.network)
        return cls(model, held[0], sparsity=args.sparsity, lr="user", **options), step

    runs = {"dense-torch": dense(torch.optim.SGD, fused=True), "dense-sparse_ops": dense(optim.SGD)}
    if args.method == "art":
        for until in ("regularize", "finetune"):
            phases = {"pretrain_epochs": 1, "max_regularize_epochs": 1, "finetune_epochs": 2}
            method, step = sparsified(methods.ART, **phases)
            while method.phase != until:
                step()
                method.end_epoch(lambda _: 0.5, train_accuracy=0.5)
            runs[f"art-{until}"] = step
    for execution in ("dense", "sparse"):
        if args.method == "acdc":
            lengths = {"total_epochs": 1, "warmup_epochs": 0, "last_dense_epochs": 0, "last_sparse_epochs": 1}
            runs[f"acdc-{execution}"] = sparsified(methods.ACDC, execution=execution, scope="uniform", **lengths)[1]
        elif args.method == "rigl":
            for delta_t in (10**9, 2):
                settled = {"total_steps": 10**9, "t_end": 1.0, "delta_t": delta_t, "scope": "uniform"}
                step = sparsified(methods.RigL, execution=execution, **settled)[1]
                step()  # it changes the mask
                runs[f"rigl-{execution}" + ("-change" if delta_t == 2 else "")] = _twice(step) if delta_t == 2 else step
    return runs


def _twice(step: Callable[[], None]) -> Callable[[], None]:
    def steps() -> None:
        step()
        step()

    return steps


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--method", default="art", choices=["art", "acdc", "rigl"])
    options.add_argument("--network", choices=["resnet8", "resnet32", *fixed_mask.NETWORKS])
    options.add_argument("--sparsity", type=float, nargs="+", help="one, 0.98, for a method")
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--fixed-mask", action="store_true", help="sparse modules against masked dense training")
    options.add_argument("--no-compile", action="store_true", help="leave out torch.compile (--fixed-mask)")
    dense_dtypes(options)
    options.set_defaults(rounds=30)
    args = start(options)
    if args.fixed_mask:
        args.network = args.network and [args.network]
        fixed_mask.main(args)
        return
    args.network, (args.sparsity,) = args.network or "resnet32", args.sparsity or [0.98]
    images = torch.randn(args.batch_size, 3, 32, 32, device=args.device).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (args.batch_size,), device=args.device)
    runs = contenders(args, images, labels)
    for run in runs.values():
        run(), run()
    names = list(runs)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for r in range(args.rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            samples[name].append(seconds(runs[name], 1, args.device))
    for name, times in samples.items():
        ratios = sorted(a / b for a, b in zip(times, samples["dense-torch"], strict=True))
        reach, middle = math.ceil(0.98 * math.sqrt(len(ratios))), len(ratios) // 2
        low, high = ratios[max(0, middle - reach)], ratios[min(len(ratios) - 1, middle + reach)]
        quarter, median, three = statistics.quantiles(times, n=4)
        report(
            args,
            op="train_step",
            shape=f"{args.network} batch {args.batch_size}",
            dtype="float32",
            sparsity=args.sparsity,
            contender=name,
            ms=1e3 * median,
            spread=(three - quarter) / median,
            ratio=ratios[middle],
            ratio_low=low,
            ratio_high=high,
        )
        print(f"{'':46}{ratios[middle]:.3f} of dense-torch, 95 % interval {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
