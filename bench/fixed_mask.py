"""A training step at a fixed mask, sparse modules against dense ones: `python -m bench train_step --fixed-mask`.

Forward, backward and an SGD step with momentum. Dense contenders multiply their gradients by the mask: their step is
the same as ours; bfloat16 is autocast over float32 weights. mlp: 3072-1024-1024-1024-10; resnet18: CIFAR's form,
planes 64 to 512. Zeros are spread uniformly, first and last layer apart, which stay dense in both.
"""

import argparse
import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench import speedups
from bench.common import measure, report, skip
from bench.weights import draw
from sparse_ops import optim, sparsify
from sparse_ops.masks import budget
from sparse_ops.train.networks import ResNet

SETTINGS = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4}


def mlp() -> nn.Module:
    """Four layers, three of them of width 1024."""
    widths = (3072, 1024, 1024, 1024, 10)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


NETWORKS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "resnet18": lambda: ResNet(3, 10, (64, 128, 256, 512), 2)}


def pruned(network: str, sparsity: float) -> nn.Module:
    """The network with random zeros in all matrices and kernels but the first convolution and the classifier."""
    torch.manual_seed(0)
    model = NETWORKS[network]()
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for seed, layer in enumerate(layers[0 if network == "mlp" else 1 : -1]):
        n = layer.weight.numel()
        with torch.no_grad():
            layer.weight.copy_(draw(layer.weight.shape, budget(n, sparsity), seed) * 2**0.5)
    return model


def stepper(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, half: bool, compiled: bool
) -> Callable[[], Any]:
    """One training step; gradients of weights with zeros are masked, sparse layers have none to mask."""
    masked = [(p, (p != 0).to(p.dtype)) for p in model.parameters() if p.dim() > 1 and int((p == 0).sum()) > 0]
    ready = torch.compile(model, dynamic=False) if compiled else model

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext():
            loss = cross_entropy(ready(images).float(), labels)
        loss.backward()
        for p, mask in masked:
            assert p.grad is not None
            p.grad.mul_(mask)
        optimizer.step()

    return step


def contenders(network: str, sparsity: float, images: Tensor, labels: Tensor) -> dict[str, Callable[[], Callable]]:
    """How to make each step, by name."""
    last = images.to(memory_format=torch.channels_last)
    layouts = {"": (images, torch.contiguous_format), " channels_last": (last, torch.channels_last)}
    if network == "mlp":
        del layouts[" channels_last"]

    def dense(x: Tensor, layout: torch.memory_format, half: bool, compiled: bool) -> Callable[[], Any]:
        model = pruned(network, sparsity).to(memory_format=layout)
        return stepper(model, torch.optim.SGD(model.parameters(), **SETTINGS, fused=True), x, labels, half, compiled)

    def sparse(x: Tensor, half: bool, own: bool) -> Callable[[], Any]:
        model = sparsify(pruned(network, sparsity), policy=f"threshold:{sparsity - 0.01}", verbose=False)
        make: Any = optim.SGD if own else torch.optim.SGD
        settings = SETTINGS if own else SETTINGS | {"fused": True}
        return stepper(model, make(model.parameters(), **settings), x, labels, half, False)

    runs: dict[str, Callable[[], Callable]] = {}
    for half, dtype in ((False, "float32"), (True, "bfloat16 autocast")):
        for name, (x, layout) in layouts.items():
            for compiled in (False, True):
                label = f"dense {dtype}{name}" + (" compiled" if compiled else "")
                runs[label] = lambda x=x, m=layout, h=half, c=compiled: dense(x, m, h, c)
        runs[f"sparse_ops {dtype}"] = lambda h=half: sparse(images, h, False)
        runs[f"sparse_ops {dtype}, own SGD"] = lambda h=half: sparse(images, h, True)
    return runs


def compare(args: argparse.Namespace, network: str, sparsity: float) -> list[dict[str, Any]]:
    """Measure every contender; the records."""
    torch.manual_seed(0)
    images, labels = torch.randn(args.batch_size, 3, 32, 32), torch.randint(0, 10, (args.batch_size,))
    where = {"op": "train_step", "work": "fixed mask", "shape": f"{network} batch {args.batch_size}"}
    where |= {"mask": "random", "sparsity": sparsity}
    runs = {}
    torch._dynamo.reset()
    for name, make in contenders(network, sparsity, images, labels).items():
        if args.no_compile and name.endswith("compiled"):
            continue
        if name.startswith("dense") and name.split()[1] not in args.dense_dtype:
            continue
        try:
            runs[name] = make()
            runs[name]()
        except RuntimeError as error:  # what a compiler lacks: the others are still measured
            runs.pop(name, None)
            skip(args, f"{type(error).__name__}: {str(error).splitlines()[0][:160]}", contender=name, **where)
    records = []
    for name, time in measure(runs, args).items():
        kind, tolerance = (
            "ours" if name.startswith("sparse_ops") else "dense",
            "float32" if "float32" in name else "half",
        )
        more = {"dtype": name.split()[1], "contender": name, "kind": kind, "tolerance": tolerance}
        records.append(report(args, **where, **more, **time))
    return records


def main(args: argparse.Namespace) -> None:
    """All networks and sparsities, and the table."""
    records = []
    for network in args.network or list(NETWORKS):
        for sparsity in args.sparsity or [0.9, 0.95, 0.98, 0.99]:
            records += compare(args, network, sparsity)
    print(speedups.table(records))
