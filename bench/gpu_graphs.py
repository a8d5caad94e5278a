"""Checks that only a CUDA device can make: no step waits for the device, and a graph replays what eager code does."""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import sparse_ops
from bench.gpu import Skipped
from sparse_ops import optim
from sparse_ops.formats import Pattern
from sparse_ops.masks import PackedMask
from sparse_ops.ops.csr_spmm import csr_spmm
from sparse_ops.ops.kth_magnitude import kth_magnitude


def on_cuda(check: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(check)
    def run(args: argparse.Namespace, **options: Any) -> None:
        if args.device != "cuda":
            raise Skipped("needs a CUDA device")
        check(**options)

    return run


def warmed_up(run: Callable[[], object], times: int = 3) -> None:
    """Run on a stream of its own, as a capture asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(times):
            run()
    torch.cuda.current_stream().wait_stream(stream)


def captured(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


class Training:
    """A network whose gradients are set by hand, an optimiser of ours, and a sweep with penalty, threshold and mask."""

    def __init__(self, optimizer: str, scaled: bool = False, **options: Any) -> None:
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 33), nn.Linear(33, 10)
        self.model = nn.Sequential(*layers).cuda()
        self.params = list(self.model.parameters())
        self.optimizer = getattr(optim, optimizer)(self.params, lr=0.01, **options)
        weights = {name: p for name, p in self.model.named_parameters() if p.dim() > 1}
        self.sweep = optim.Sweep(weights)
        optim.attach(self.optimizer, self.sweep)
        self.sweep.set_penalty("hypersparse", 1e-3)
        self.sweep.track(0.9)
        rng = torch.Generator().manual_seed(1)
        kept = torch.rand(self.model[3].weight.shape, generator=rng) < 0.6
        self.sweep.set_masks({"3.weight": PackedMask.from_dense(kept.cuda())})
        if scaled:
            self.optimizer.grad_scale = torch.tensor(8.0, device="cuda")
            self.optimizer.found_inf = torch.tensor(0.0, device="cuda")
        for p in self.params:
            p.grad = torch.zeros_like(p)

    def set_gradients(self, step: int) -> None:
        rng = torch.Generator(device="cuda").manual_seed(step)
        for p in self.params:
            p.grad.copy_(torch.randn(p.shape, generator=rng, device="cuda"))

    def state(self) -> list[Tensor]:
        """All that a step changes."""
        held = [t for p in self.params for t in self.optimizer.state[p].values() if isinstance(t, Tensor)]
        return [*self.params, *held, self.sweep.coefficients, self.sweep.brackets, self.sweep.report]

    def threshold_is_exact(self) -> None:
        u = torch.cat([w.detach().abs().flatten() for w in self.sweep.weights.values()]).double().sort().values
        k = self.sweep.ranks[0]
        found = self.sweep.report[0, 0].item()
        assert found == u[k - 1].item(), f"the threshold is {found}, exactly {u[k - 1].item()}"


@on_cuda
def no_synchronisation(optimizer: str, **options: Any) -> None:
    """Steps with new gradients at new addresses, as after zero_grad(); torch raises where the host would wait."""
    training = Training(optimizer, scaled=True, **options)
    for step in range(2):
        training.set_gradients(step)
        training.optimizer.step()
    held = []
    for step in range(4):
        fresh = [torch.randn_like(p) for p in training.params]
        held.append(fresh)
        for p, g in zip(training.params, fresh, strict=True):
            p.grad = g
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            training.optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
        training.optimizer.found_inf.fill_(float(step == 1))
    training.threshold_is_exact()


@on_cuda
def replayed(optimizer: str, scaled: bool = False, **options: Any) -> None:
    """Ten replays of a captured step against ten eager ones of a twin, bit for bit; with a scaler two are skipped."""
    twins = [Training(optimizer, scaled, **options) for _ in range(2)]
    for training in twins:
        training.set_gradients(0)
        warmed_up(training.optimizer.step)
    graph = captured(twins[0].optimizer.step)
    for step in range(1, 11):
        skipped = scaled and step in (3, 4)
        for training in twins:
            training.set_gradients(step)
            if scaled:
                training.optimizer.found_inf.fill_(float(skipped))
        before = [t.clone() for t in twins[0].state()]
        graph.replay()
        twins[1].optimizer.step()
        if skipped:
            assert all(torch.equal(a, b) for a, b in zip(before, twins[0].state(), strict=True)), "a skip changed state"
        pairs = zip(*(training.state() for training in twins), strict=True)
        differing = [i for i, pair in enumerate(pairs) if not torch.equal(*pair)]
        assert not differing, f"step {step}: replay and eager differ in state tensors {differing}"
        twins[0].threshold_is_exact()


@on_cuda
def whole_step() -> None:
    """Forward, backward and step in one graph; the gradients are born in it. Exact thresholds, and a falling loss."""
    training = Training("SGD", momentum=0.9)
    x, y = torch.randn(64, 3, 8, 8, device="cuda"), torch.randint(0, 10, (64,), device="cuda")
    loss = torch.zeros((), device="cuda")

    def step() -> None:
        training.optimizer.zero_grad(set_to_none=True)
        value = nn.functional.cross_entropy(training.model(x), y)
        value.backward()
        training.optimizer.step()
        loss.copy_(value.detach())

    warmed_up(step)
    graph = captured(step)
    losses = []
    for _ in range(30):
        graph.replay()
        losses.append(loss.item())
        training.threshold_is_exact()
    assert losses[-1] < losses[0], f"the loss went from {losses[0]} to {losses[-1]}"


@on_cuda
def lr_tensor(optimizer: str, **options: Any) -> None:
    """A learning rate that lives on the device: no step waits for it, and a replay takes what it holds then."""
    twins = [Training(optimizer, **options) for _ in range(2)]
    rate = torch.tensor(0.01, device="cuda")
    twins[0].optimizer.param_groups[0]["lr"] = rate
    twins[1].optimizer.param_groups[0]["lr"] = rate.item()
    for training in twins:
        training.set_gradients(0)
        warmed_up(training.optimizer.step)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        twins[0].optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    twins[1].optimizer.step()
    graph = captured(twins[0].optimizer.step)
    for step, value in enumerate((0.1, 0.003, 0.0)):
        rate.fill_(value)
        twins[1].optimizer.param_groups[0]["lr"] = rate.item()
        for training in twins:
            training.set_gradients(1 + step)
        before = [p.detach().clone() for p in twins[0].params]
        graph.replay()
        twins[1].optimizer.step()
        assert any(map(torch.equal, before, twins[0].params)) == (value == 0), f"lr {value} was not taken"
    for p, q in zip(*(t.params for t in twins), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@on_cuda
def selection() -> None:
    """kth_magnitude of a tensor that no table knows before the capture: the upload is part of the graph."""
    first, second = (torch.randn(1_000_003, device="cuda") for _ in range(2))
    warmed_up(lambda: kth_magnitude([first], 900_000))
    results = []
    graph = captured(lambda: results.append(kth_magnitude([second], 900_000)))
    for seed in range(3):
        torch.manual_seed(seed)
        second.normal_()
        scratch = [torch.full((1000,), 77, dtype=torch.int64, device="cuda") for _ in range(50)]  # reuses freed memory
        graph.replay()
        assert results[0].item() == second.abs().sort().values[899_999].item()
        del scratch


@on_cuda
def products() -> None:
    """SpMM with its gradients, and a sparse convolution, captured."""
    torch.manual_seed(0)
    dense = torch.randn(256, 300, device="cuda") * (torch.rand(256, 300, device="cuda") < 0.1)
    pattern, live = Pattern.from_dense(dense)
    live.requires_grad_()
    x = torch.randn(64, 300, device="cuda", requires_grad=True)
    conv = nn.Conv2d(8, 16, 3, padding=1).cuda()
    with torch.no_grad():
        conv.weight *= torch.rand_like(conv.weight) < 0.2
    sparse, image = sparse_ops.nn.SparseConv2d.from_dense(conv), torch.randn(4, 8, 12, 12, device="cuda")
    outputs: list[tuple[Tensor, ...]] = []

    def run() -> None:
        y = csr_spmm(live, *pattern.tensors(), x, True)
        z = sparse(image)
        outputs.append((y, z, *torch.autograd.grad(y.sum() + z.sum(), [live, x, sparse.values])))

    warmed_up(run)
    graph = captured(run)
    replayed_outputs = outputs[-1]
    with torch.no_grad():
        x.mul_(0.5)
        image.mul_(-2)
    graph.replay()
    run()
    for got, want in zip(replayed_outputs, outputs[-1], strict=True):
        torch.testing.assert_close(got, want)


CHECKS: dict[str, Callable[[argparse.Namespace], None]] = {
    "no synchronisation SGD": functools.partial(no_synchronisation, optimizer="SGD", momentum=0.9, dampening=0.1),
    "no synchronisation AdamW": functools.partial(no_synchronisation, optimizer="AdamW"),
    "captured SGD": functools.partial(replayed, optimizer="SGD", momentum=0.9, weight_decay=1e-3),
    "captured SGD found_inf": functools.partial(replayed, optimizer="SGD", momentum=0.9, scaled=True),
    "captured AdamW": functools.partial(replayed, optimizer="AdamW"),
    "captured AdamW found_inf": functools.partial(replayed, optimizer="AdamW", scaled=True),
    "captured whole step": whole_step,
    "captured kth_magnitude": selection,
    "captured csr_spmm sparse_conv2d": products,
    "captured SGD lr as a tensor": functools.partial(lr_tensor, optimizer="SGD", momentum=0.9, weight_decay=1e-3),
    "captured AdamW lr as a tensor": functools.partial(lr_tensor, optimizer="AdamW"),
}
