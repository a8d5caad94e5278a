"""Checks of whole runs on a device: the exact threshold of each step, and the optimisers against torch's."""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bench.gpu_problems import op_under_test, values
from sparse_ops import methods, optim
from sparse_ops.masks import PackedMask
from sparse_ops.ops.regularized_sgd import regularized_sgd_
from sparse_ops.ops.sweep_finish import sweep_finish_
from sparse_ops.ops.sweep_observe import sweep_observe_

THRESHOLD, PREVIOUS, HIT, CANDIDATES, DS, PASSES, STEPS, NON_FINITE = range(8)
FAST = 1e-3  # relative movement of a step


class Run:
    """Weights under SGD with the HyperSparse penalty; `check` compares with a full sort and float64 sums."""

    def __init__(self, args, sizes, scopes, sparsity=0.98, dtype=torch.float32, capacity=None, kind="normal"):
        self.device, self.scopes = args.device, scopes
        self.weights = [values(n, kind, dtype, i, args.device) for i, n in enumerate(sizes)]
        self.momenta = [torch.zeros_like(w) for w in self.weights]
        self.rng = torch.Generator(device=args.device).manual_seed(0)
        rows = max(scopes) + 1
        self.sizes = [sum(n for n, scope in zip(sizes, scopes, strict=True) if scope == r) for r in range(rows)]
        self.ranks = [int(sparsity * n) + 1 for n in self.sizes]
        f64 = {"dtype": torch.float64, "device": args.device}
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.coefficients, self.brackets = torch.zeros(rows, 4, **f64), torch.zeros(rows, 2, **f64)
        self.coefficients[:, 0] = 1e-4
        self.statistics, self.report = torch.zeros(rows, 7, **f64), torch.zeros(rows, 8, **f64)
        capacity = capacity or max(self.sizes) // 64 + 1024
        self.candidates = torch.full((rows, capacity), torch.nan, dtype=wide, device=args.device)
        self.tables = self.coefficients, self.brackets, self.statistics, self.candidates

    def step(self, lr: float) -> None:
        grads = [torch.randn(w.shape, generator=self.rng, device=self.device, dtype=w.dtype) for w in self.weights]
        settings = {"penalty": "hypersparse", "lr": lr, "momentum": 0.9, "weight_decay": 1e-2}
        with op_under_test():
            regularized_sgd_(self.weights, grads, self.momenta, [], [], self.scopes, *self.tables, **settings)

    def observe(self) -> None:
        with op_under_test():
            sweep_observe_(self.weights, [], self.scopes, *self.tables)

    def finish(self, **options: Any) -> None:
        with op_under_test():
            sweep_finish_(self.weights, self.scopes, self.ranks, *self.tables, self.report, **options)
        assert not self.statistics.any(), "the statistics are not cleared"
        self.check()

    def check(self) -> None:
        for row, k in enumerate(self.ranks):
            mine = [w for w, scope in zip(self.weights, self.scopes, strict=True) if scope == row]
            u = torch.cat([w.double().abs() for w in mine])
            threshold = u.sort().values[k - 1].item()
            found = self.report[row, THRESHOLD].item()
            assert found == threshold, f"scope {row}: the threshold is {found}, exactly {threshold}"
            s, ratio = self.coefficients[row, 2:].tolist()
            largest = torch.finfo(self.candidates.dtype).max
            if threshold == 0 or threshold * largest < 0.6585:
                assert s == ratio == 0, f"scope {row}: s {s}, ratio {ratio} at the threshold {threshold}"
                continue
            exact = (u.sum() / torch.tanh(0.6585 / threshold * u).sum()).item()
            if s == 0:  # s N/A is beyond the range
                assert 0.6585 / threshold * exact > largest
                continue
            assert abs(s * threshold / 0.6585 - 1) < 1e-12, f"scope {row}: s is {s}"
            assert abs(ratio / exact - 1) < 1e-6, f"scope {row}: N/A is {ratio}, exactly {exact}"


def jumps(args, scopes, dtype=torch.float32) -> None:
    """40 steps: a walk, a learning rate ten times larger from step 15 on, weights of three times the size at 30."""
    sizes, steps = ([1100, 300, 77, 600], 4) if args.device == "cpu" else ([3_000_000, 500_000, 777, 40_001], 40)
    run = Run(args, sizes, scopes, dtype=dtype)
    run.finish(exact=True)
    hits = []
    for step in range(steps):
        run.step(FAST if step < 15 * steps // 40 else 10 * FAST)
        if step == 30 * steps // 40:
            for w in run.weights:
                w.mul_(3)
            run.statistics.zero_()
            run.observe()
        run.finish()
        hits.append(run.report[:, HIT].min().item())
    if steps == 40:
        assert sum(hits) > 25, f"the bracket proved only {sum(hits):.0f} of 40 steps"
    assert (run.report[:, STEPS] == steps + 1).all()


def narrow(args) -> None:
    """Ranks at both ends with room for 64 candidates: the bracket overflows, then it fits."""
    run = Run(args, [2000 if args.device == "cpu" else 300_000], [0], capacity=64)
    for k in (1, run.sizes[0] // 2, run.sizes[0]):
        run.ranks = [k]
        run.finish(exact=True)
        for _ in range(2 if args.device == "cpu" else 24):
            run.observe()
            run.finish()
    if args.device == "cuda":
        assert run.report[0, HIT] == 1, "the bracket never became narrow enough"


def degenerate(args, kind: str, dtype: torch.dtype = torch.float32) -> None:
    """Steps over weights that are all equal, mostly zero, denormal or tied: thresholds of exactly one number."""
    run = Run(args, [1000, 501], [0, 0], capacity=16, kind=kind, dtype=dtype)
    run.finish(exact=True)
    for _ in range(2):
        run.observe()
        run.finish()


def left_alone(args) -> None:
    """A finish after nothing was swept, with found_inf, leaves a scope as it was; a NaN sets its flag."""
    run = Run(args, [2000, 1000], [0, 1])
    run.finish(exact=True)
    before = run.coefficients.clone(), run.brackets.clone(), run.report.clone()
    run.finish()
    assert all(map(torch.equal, before, (run.coefficients, run.brackets, run.report)))
    run.weights[0][7] = torch.nan
    with op_under_test():
        sweep_observe_(run.weights, [], run.scopes, *run.tables)
        sweep_finish_(run.weights, run.scopes, run.ranks, *run.tables, run.report)
    assert run.report[:, NON_FINITE].tolist() == [1.0, 0.0]
    assert torch.equal(run.coefficients[0], before[0][0]), "a NaN changed the coefficients"


def network(device: str) -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3)
    made = nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10))
    return made.to(device).to(memory_format=torch.channels_last)


def against_torch(args, optimizer: str, dtype: torch.dtype = torch.float32, **options) -> None:
    """Six steps of ours and of torch.optim's, state_dicts exchanged in the middle."""
    models = [network(args.device).to(dtype) for _ in range(2)]
    makes = getattr(optim, optimizer), getattr(torch.optim, optimizer)
    ours, theirs = (make(m.parameters(), **options) for make, m in zip(makes, models, strict=True))
    eps = torch.finfo(dtype).eps
    for step in range(6):
        if step == 3:
            state = theirs.state_dict()
            theirs.load_state_dict(ours.state_dict())
            ours.load_state_dict(state)
        rng = torch.Generator().manual_seed(step)
        for p, q in zip(*(m.parameters() for m in models), strict=True):
            p.grad = torch.randn(p.shape, generator=rng).to(args.device, dtype)
            q.grad = p.grad.clone(memory_format=torch.preserve_format)
        with op_under_test():
            ours.step()
        theirs.step()
        for p, q in zip(*(m.parameters() for m in models), strict=True):
            torch.testing.assert_close(p, q, rtol=20 * eps, atol=20 * eps)


def hooked(args) -> None:
    """HyperSparse and masks inside our SGD, and attached to torch's: the same weights; `check` recomputes each step."""
    results = []
    for make in (optim.SGD, torch.optim.SGD):
        model = network(args.device)
        optimizer = make(model.parameters(), lr=0.01, momentum=0.9)
        sweep = optim.Sweep({"0": model[0].weight, "4": model[4].weight}, check=True)
        rng = torch.Generator().manual_seed(5)
        with op_under_test():
            optim.attach(optimizer, sweep)
            sweep.set_penalty("hypersparse", 1e-3)
            sweep.track(0.9)
            kept = torch.rand(model[4].weight.shape, generator=rng) < 0.7
            sweep.set_masks({"4": PackedMask.from_dense(kept.to(args.device))})
            for _ in range(3 if args.device == "cpu" else 10):
                for p in model.parameters():
                    p.grad = torch.randn(p.shape, generator=rng).to(args.device)
                optimizer.step()
        results.append([p.detach().clone() for p in model.parameters()])
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() <= 2e-6 * b.norm()


def one_method(args) -> None:
    """ART from the dense phase to its budget on the device: exactly as many zeros as asked for."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4)).to(args.device)
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    phases = {"pretrain_epochs": 1, "max_regularize_epochs": 2, "finetune_epochs": 1}
    x, y = torch.randn(64, 12).to(args.device), torch.randint(0, 4, (64,)).to(args.device)
    with op_under_test():
        sparsifier = methods.ART(model, optimizer, sparsity=0.6, **phases)
        while not sparsifier.finished:
            for _ in range(2):
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
            sparsifier.end_epoch(lambda m: (m(x).argmax(1) == y).double().mean().item(), train_accuracy=0.5)
        model = sparsifier.finalize()
    zeros = sum(int((model[i].weight == 0).sum()) for i in (0, 2))
    n = 12 * 24 + 24 * 4
    assert zeros == int(0.6 * n + 0.5), f"{zeros} of {n} weights are zero"


def _checks() -> dict[str, Callable[[argparse.Namespace], None]]:
    made: dict[str, Callable[[argparse.Namespace], None]] = {}

    def add(name: str, check: Callable[..., None], **options: Any) -> None:
        made[name] = functools.partial(check, **options)

    add("sweep_finish 40 steps, global", jumps, scopes=[0, 0, -1, 0])
    add("sweep_finish 40 steps, three scopes", jumps, scopes=[0, 1, 2, 0])
    add("sweep_finish 40 steps, float64", jumps, scopes=[0, 0, -1, 0], dtype=torch.float64)
    add("sweep_finish both ends, overflow", narrow)
    for kind in ("equal", "sparse", "denormal", "ties", "signed zero"):
        add(f"sweep_finish {kind}", degenerate, kind=kind)
    add("sweep_finish denormal float64", degenerate, kind="denormal", dtype=torch.float64)
    add("sweep_finish left alone, NaN", left_alone)
    sgd = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
    add("optim.SGD nesterov", against_torch, **sgd, nesterov=True, optimizer="SGD")
    add("optim.SGD dampening maximize", against_torch, **sgd, dampening=0.3, maximize=True, optimizer="SGD")
    add("optim.AdamW amsgrad", against_torch, lr=1e-2, amsgrad=True, optimizer="AdamW")
    add("optim.SGD float64", against_torch, **sgd, dtype=torch.float64, optimizer="SGD")
    add("sweep inside and attached", hooked)
    add("ART", one_method)
    return made


CHECKS = _checks()
