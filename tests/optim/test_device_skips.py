"""Steps that the device skips, as on CUDA under GradScaler: the host does not look, and nothing advances."""

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sparse_ops import optim
from sparse_ops.optim import fused

SGD = {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 1e-3}
CASES = [(optim.SGD, torch.optim.SGD, SGD), (optim.AdamW, torch.optim.AdamW, {"lr": 1e-2, "amsgrad": True})]


@pytest.fixture
def unseen(monkeypatch):
    """CPU tensors, treated as those of a device that the host must not wait for."""
    monkeypatch.setattr(fused.SweepInside, "_skips", lambda self: False)
    monkeypatch.setattr(fused.SweepInside, "_decided_by_device", lambda self, bucket: bucket.found_inf)


def parameters():
    rng = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=rng)) for shape in ((8, 5), (16,))]


def set_grads(params, step):
    rng = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=rng)


def take(optimizer, params, step, skipped):
    """A step under GradScaler; found_inf is what it finds out on the device."""
    set_grads(params, step)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(float(skipped))
    optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf


@pytest.mark.parametrize("ours, theirs, options", CASES)
@pytest.mark.parametrize("skipped", [(0, 1), (2,), (0, 3)])
def test_what_the_device_skips_has_not_happened(ours, theirs, options, skipped, unseen):
    a, b = parameters(), parameters()
    x, y = ours(a, **options), theirs(b, **options)
    for step in range(5):
        take(x, a, step, step in skipped)
        if step not in skipped:
            set_grads(b, step), y.step()
        for p, q in zip(a, b, strict=True):
            torch.testing.assert_close(p, q, rtol=2e-6, atol=2e-6)
        resumed = [torch.nn.Parameter(p.detach().clone()) for p in a]  # after every step, in torch's optimiser
        z = theirs(resumed, **options)
        z.load_state_dict(copy.deepcopy(x.state_dict()))
        expected = copy.deepcopy((b, y))
        for params, optimizer in ((resumed, z), expected):
            set_grads(params, 99), optimizer.step()
        torch.testing.assert_close(resumed, expected[0], rtol=2e-6, atol=2e-6)
        assert all(set(state) <= {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"}
                   for state in x.state_dict()["state"].values())  # fmt: skip


@pytest.mark.parametrize("cls, _, options", CASES)
def test_a_step_on_cuda_asks_the_device_nothing(cls, _, options):
    """With tensors that have no values every question (item, bool, nonzero) is an error."""
    fused._no_scopes.cache_clear()
    try:
        with FakeTensorMode():
            params = [torch.nn.Parameter(torch.empty(6, 4, device="cuda")) for _ in range(3)]
            optimizer = cls(params, **options)
            for _ in range(3):
                for p in params:
                    p.grad = torch.empty_like(p)
                optimizer.grad_scale, optimizer.found_inf = (torch.empty((), device="cuda") for _ in range(2))
                optimizer.param_groups[0]["lr"] = torch.empty((), device="cuda")
                optimizer.step()
            for state in optimizer.state.values():
                assert all(t.device.type == "cuda" for t in state.values())
            optimizer.sweep = None
            if cls is optim.AdamW:
                assert all(s["step"].device.type == "cpu" for s in optimizer.state_dict()["state"].values())
                optimizer.param_groups[0]["capturable"] = True
                assert all(s["step"].device.type == "cuda" for s in optimizer.state_dict()["state"].values())
    finally:
        fused._no_scopes.cache_clear()
