"""The SGD sweep kernel over pointer tables against a plain float64 formula."""

import math

import pytest
import torch

pytest.importorskip("triton")

from sparse_ops import tables
from sparse_ops.kernels import partials as partial_sums
from sparse_ops.kernels.regularized_sgd import regularized_sgd
from sparse_ops.reference.apply_masks import unpack_bits

SIZES = [2048, 7, 16387, 1, 520]  # a tile, ragged, more than a chunk, one element, a tile and a vector
SCOPES = [0, 1, 0, -1, 1]
COEFFICIENTS = [[0.3, 0.05, 4.0, 0.7], [0.2, 0.01, 2.5, 1.3]]  # strength, kept strength, scale, ratio
FLAGS = {"nesterov": False, "maximize": False, "first_step": False}
HYPER = {"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.01}


def penalty_gradient(name, w, grouped, strength, kept_strength, scale, ratio):
    match name:
        case "l1":
            return strength * w.sign()
        case "l2":
            return 2 * strength * w
        case "growing_l2":
            return (kept_strength + (strength - kept_strength) * grouped.double()) * w
        case "hypersparse":
            return strength * w.sign() * scale * (1 - torch.tanh(scale * w.abs()) ** 2) * ratio
    return torch.zeros_like(w)


def expected(w, g, m, mask, group, row, penalty, nesterov, maximize, first_step, grad_scale):
    w, g, m = w.double(), g.double() / grad_scale, m.double()
    g = (-g if maximize else g) + HYPER["weight_decay"] * w + penalty_gradient(penalty, w, group, *row)
    m = g if first_step else HYPER["momentum"] * m + (1 - HYPER["dampening"]) * g
    g = g + HYPER["momentum"] * m if nesterov else m
    return torch.where(mask, w - HYPER["lr"] * g, 0.0), torch.where(mask, m, 0.0)


def statistics_of(w, low, high, scale):
    u = w.double().abs()
    t, c = torch.tanh(scale * u), 1 / torch.cosh(scale * u) ** 2
    sums = [u.sum(), t.sum(), (u * c).sum(), (u * u * t * c).sum(), (u >= high).sum(), ((u >= low) & (u < high)).sum()]
    return torch.stack([x.double() for x in sums])


class Problem:
    def __init__(self, device, dtype=torch.float32, grad_dtype=None, shift=0):
        rng = torch.Generator().manual_seed(0)

        def some(n, d):
            return torch.randn(n + shift, generator=rng).to(device, d)[shift:]

        self.weights = [some(n, dtype) for n in SIZES]
        self.grads = [some(n, grad_dtype or dtype) for n in SIZES]
        self.momenta = [some(n, dtype) for n in SIZES]
        self.masks, self.groups = (
            [torch.randint(0, 256, ((n + 7) // 8,), generator=rng, dtype=torch.uint8).to(device) for n in SIZES]
            for _ in range(2)
        )
        self.masks[2] = self.masks[2][:0]  # none
        self.coefficients = torch.tensor(COEFFICIENTS, dtype=torch.float64, device=device)
        self.brackets = torch.tensor([[0.5, 0.75], [0.0, math.inf]], dtype=torch.float64, device=device)
        self.statistics = torch.ones(2, 7, dtype=torch.float64, device=device)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.candidates = torch.full((2, 3000), math.nan, dtype=wide, device=device)

    def run(
        self, penalty, nesterov=False, maximize=False, first_step=False, grad_scale=None, found_inf=None, chunk=4096
    ):
        plan = tables.plan(
            self.weights, self.grads, self.masks, self.groups, [self.momenta], scopes=SCOPES, chunk=chunk
        )
        sums = torch.full((6, plan.chunk_scopes.numel()), math.nan, dtype=torch.float64, device=self.statistics.device)
        for table in plan.tables:
            regularized_sgd(
                table, self.coefficients, self.brackets, self.statistics, self.candidates, sums, penalty,
                *HYPER.values(), nesterov, maximize, first_step, None, grad_scale, found_inf,
            )  # fmt: skip
        partial_sums.add_partials(sums, plan.chunk_scopes, self.statistics, found_inf)
        return plan

    def dense(self, packed):
        ones = torch.tensor([255], dtype=torch.uint8, device=self.statistics.device)
        return [
            unpack_bits(b if b.numel() else ones.expand((n + 7) // 8), n) for b, n in zip(packed, SIZES, strict=True)
        ]


CASES = {
    "none": {"penalty": "none"},
    "l1, nesterov": {"penalty": "l1", "nesterov": True},
    "l2, maximize": {"penalty": "l2", "maximize": True},
    "growing_l2, first step": {"penalty": "growing_l2", "first_step": True},
    "hypersparse": {"penalty": "hypersparse"},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_formula(case, dtype, device):
    problem, options = Problem(device, dtype), CASES[case]
    scaled = options["penalty"] == "hypersparse"
    grad_scale = torch.tensor([8.0], device=device) if scaled else None
    if options.get("first_step"):
        for m in problem.momenta:
            m.fill_(math.nan)  # what the first step must not read
    masks, groups = problem.dense(problem.masks), problem.dense(problem.groups)
    rows = [COEFFICIENTS[s] if s >= 0 else [0.0] * 4 for s in SCOPES]
    factor = 8.0 if scaled else 1.0
    columns = zip(problem.weights, problem.grads, problem.momenta, masks, groups, rows, strict=True)
    want = [expected(*column, grad_scale=factor, **FLAGS | options) for column in columns]
    problem.run(grad_scale=grad_scale, **options)
    rtol, atol = (2e-6, 1e-6) if dtype == torch.float32 else (1e-13, 1e-13)
    for w, m, k, (w_want, m_want) in zip(problem.weights, problem.momenta, masks, want, strict=True):
        torch.testing.assert_close(w.double(), w_want, rtol=rtol, atol=atol)
        torch.testing.assert_close(m.double(), m_want, rtol=rtol, atol=atol)
        assert not torch.signbit(w[~k]).any() and not torch.signbit(m[~k]).any()
    for scope, (low, high) in enumerate(problem.brackets.tolist()):
        w = torch.cat([w for w, s in zip(problem.weights, SCOPES, strict=True) if s == scope])
        stats = statistics_of(w, low, high, COEFFICIENTS[scope][2])
        tolerance = 3e-7 if dtype == torch.float32 else 1e-13
        torch.testing.assert_close(problem.statistics[scope, :4] - 1, stats[:4], rtol=tolerance, atol=1e-9)
        assert torch.equal(problem.statistics[scope, 4] - 1, stats[4])
        assert torch.equal(problem.statistics[scope, 5] - 1, stats[5])
        assert problem.statistics[scope, 6] - 1 == w.numel()
        found = problem.candidates[scope]
        u = w.abs()
        want_found = u[(u >= low) & (u < high)].sort().values
        assert torch.equal(found[1 : 1 + len(want_found)].sort().values, want_found.to(found.dtype)), "from count 1 on"


def test_half_precision_is_rounded_to_nearest_even(device):
    problem = Problem(device, torch.bfloat16, torch.float32)
    problem.masks = [m[:0] for m in problem.masks]
    problem.brackets.fill_(0.5)
    want = [
        (w.float() - 0.1 * (0.9 * m.float() + 0.8 * (g + 0.01 * w.float()))).bfloat16()
        for w, g, m in zip(problem.weights, problem.grads, problem.momenta, strict=True)
    ]
    problem.run("none")
    for w, w_want in zip(problem.weights, want, strict=True):
        assert (w != w_want).float().mean() < 0.01, "only where float32 rounds a tie otherwise"
        torch.testing.assert_close(w, w_want, rtol=2**-7, atol=1e-6)
    above = sum(int((w.float().abs() >= 0.5).sum()) for w, s in zip(problem.weights, SCOPES, strict=True) if s == 0)
    assert problem.statistics[0, 4] == 1 + above, "the statistics are those of what is stored"


def test_found_inf_skips_everything(device):
    problem, before = Problem(device), Problem(device)
    problem.run("hypersparse", found_inf=torch.ones(1, device=device))
    assert all(map(torch.equal, problem.weights, before.weights))
    assert all(map(torch.equal, problem.momenta, before.momenta))
    assert torch.equal(problem.statistics, before.statistics)


def test_unaligned_views_get_a_table_of_their_own(device):
    aligned, shifted = Problem(device), Problem(device, shift=1)
    plan = shifted.run("l2")
    assert len(plan.tables) == 1 and not plan.tables[0].aligned
    assert {t.aligned for t in aligned.run("l2").tables} == {True, False}


def test_the_same_bits_from_run_to_run_and_any_chunks_to_1e_6(device):
    runs = [Problem(device) for _ in range(3)]
    for problem, chunk in zip(runs, (4096, 4096, 1024), strict=True):
        problem.run("hypersparse", chunk=chunk)
    assert torch.equal(runs[0].statistics, runs[1].statistics)
    assert all(map(torch.equal, runs[0].weights, runs[2].weights))
    torch.testing.assert_close(runs[0].statistics, runs[2].statistics, rtol=1e-6, atol=0)
    assert torch.equal(runs[0].statistics[:, 4:], runs[2].statistics[:, 4:])
