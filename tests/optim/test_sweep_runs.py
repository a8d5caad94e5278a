"""Random runs of a sweep: after each step the threshold is the full sort's, and the coefficients follow."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparse_ops import optim
from sparse_ops.ops.kth_magnitude import kth_magnitude
from sparse_ops.optim import Sweep, attach

QUIET = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
EVENTS = [
    "drift",
    "drift",
    "drift",
    "still",
    "jump",
    "equal",
    "zeros",
    "ties",
    "denormal",
    "outlier",
    "sparsity",
    "edit",
]
SIZES = [1, 3, 17, 64, 500, 1030, 5000]


def target(event: str, w: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """What the weights become."""
    noise = torch.randn(w.shape, generator=rng, dtype=w.dtype)
    match event:
        case "drift":
            return w + 0.002 * w.abs().mean() * noise
        case "jump":
            return 10.0 ** torch.randint(-3, 3, (1,), generator=rng).item() * noise
        case "equal":
            return torch.full_like(w, 0.37) * noise.sign()
        case "zeros":
            return torch.where(torch.rand(w.shape, generator=rng) < 0.99, 0.0, noise).to(w.dtype)
        case "ties":
            return (noise * 2).round() / 4
        case "denormal":
            return noise.sign() * torch.randint(0, 4, w.shape, generator=rng) * torch.finfo(w.dtype).smallest_normal / 8
        case "outlier":
            return torch.where(torch.rand(w.shape, generator=rng) < 0.01, 1e6 * noise, w)
    return w.clone()


def literal(weights: list[torch.Tensor], kappa: float) -> tuple[float, float, float]:
    """(threshold, scale, ratio) by sorting, in float64; 0, 0 where the scale is not finite in the weights' type."""
    u = torch.cat([w.detach().double().abs().flatten() for w in weights]).sort().values
    a_k = u[math.floor(kappa * u.numel())].item()
    s = 0.6585 / a_k if a_k > 0 else math.inf
    if s > torch.finfo(weights[0].dtype).max:
        return a_k, 0.0, 0.0
    return a_k, s, (u.sum() / torch.tanh(s * u).sum()).item()


@settings(max_examples=250, **QUIET)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore:HyperSparse")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_step_of_a_random_run(dtype, data):
    draw = data.draw
    sizes = draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=4))
    by_layer = draw(st.booleans())
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    params = {f"{i}": torch.nn.Parameter(torch.randn(n, generator=rng, dtype=dtype)) for i, n in enumerate(sizes)}
    sweep = Sweep(params, list(range(len(sizes))) if by_layer else None)
    optimizer = optim.SGD(params.values(), lr=1.0)
    attach(optimizer, sweep)
    kappas = [draw(st.sampled_from([0.0001, 0.1, 0.5, 0.9, 0.98, 0.9999]))] * (len(sizes) if by_layer else 1)
    sweep.set_penalty("hypersparse", 0.0)  # coefficients as in training, weights as the events want them
    sweep.track(kappas)
    for _ in range(draw(st.integers(3, 8))):
        event = draw(st.just("drift") | st.sampled_from(EVENTS))
        if event == "sparsity":
            kappas = [draw(st.floats(0.01, 0.999)) for _ in kappas]
            sweep.track(kappas)
        if event == "edit":
            with torch.no_grad():
                params["0"].mul_(1.5)
        with torch.no_grad():
            for p in params.values():
                p.grad = p - target(event, p.detach(), rng)
        optimizer.step()
        for row, kappa in enumerate(kappas):
            mine = [p for name, p in params.items() if sweep.scopes[name] == row]
            threshold, scale, ratio = literal(mine, kappa)
            assert sweep.report[row, 0].item() == threshold, event
            if scale == 0:
                assert sweep.coefficients[row, 2:].tolist() == [0, 0], event
            else:
                assert sweep.coefficients[row, 2].item() == pytest.approx(scale, rel=1e-12), event
                assert sweep.coefficients[row, 3].item() == pytest.approx(ratio, rel=1e-6), event


def test_more_than_two_to_the_31_weights():
    block = torch.randn(2**17, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    weights = [block.repeat(2**8)] * 65  # 2.18e9 weights in all, one piece of memory
    n = sum(w.numel() for w in weights)
    assert n > 2**31
    ordered = block.double().abs().sort().values
    for k in (1, n // 2, int(0.98 * n), n):
        assert kth_magnitude(weights, k).item() == ordered[(k - 1) // (n // 2**17)].item()
