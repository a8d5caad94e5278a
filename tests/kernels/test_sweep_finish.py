"""The end of a step on the Triton kernels: exact thresholds through a simulated run, and the cold and broken cases."""

import math

import pytest
import torch

pytest.importorskip("triton")

from sparse_ops import launch
from sparse_ops.ops.sweep_finish import sweep_finish_
from sparse_ops.ops.sweep_observe import sweep_observe_

SCOPES = [0, 1, 0]
RANKS = [5400, 1500]


class Run:
    """Weights of two scopes whose thresholds are tracked by the kernels, or by the specification."""

    def __init__(self, device, dtype=torch.float32):
        rng = torch.Generator().manual_seed(3)
        self.rng = rng
        self.weights = [torch.randn(n, generator=rng).to(device, dtype) for n in (4000, 3000, 2000)]
        f64 = {"dtype": torch.float64, "device": device}
        self.coefficients = torch.tensor([[0.1, 0.0, 0.0, 0.0]] * 2, **f64)
        self.brackets = torch.zeros(2, 2, **f64)
        self.statistics, self.report = torch.zeros(2, 7, **f64), torch.zeros(2, 8, **f64)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.candidates = torch.full((2, 1024), math.nan, dtype=wide, device=device)

    def move(self, relative):
        for w in self.weights:
            w += relative * w.std() * torch.randn(w.shape, generator=self.rng).to(w.device, w.dtype)

    def observe(self):
        state = self.coefficients, self.brackets, self.statistics, self.candidates
        sweep_observe_(self.weights, [], SCOPES, *state)

    def finish(self, ranks=RANKS, exact=False):
        state = self.coefficients, self.brackets, self.statistics, self.candidates, self.report
        sweep_finish_(self.weights, SCOPES, ranks, *state, exact=exact)

    def of_scope(self, r):
        return torch.cat([w for w, s in zip(self.weights, SCOPES, strict=True) if s == r]).double().abs()

    def check(self, ranks=RANKS):
        for r, k in enumerate(ranks):
            u = self.of_scope(r)
            threshold = u.kthvalue(k).values
            assert self.report[r, 0] == threshold
            s = 0.6585 / threshold if threshold > 0 else 0.0
            torch.testing.assert_close(self.coefficients[r, 2].item(), float(s), rtol=1e-12, atol=0)
            ratio = u.sum() / torch.tanh(s * u).sum() if threshold > 0 else 0.0
            torch.testing.assert_close(self.coefficients[r, 3].item(), float(ratio), rtol=1e-6, atol=0)
            assert not self.statistics[r].any() and self.report[r, 7] == 0


@pytest.fixture
def run(device):
    with launch.forced("triton"):
        yield Run(device)


def test_a_run_finds_every_threshold_and_soon_by_its_bracket(run):
    for step in range(6):
        run.move(0.003)
        run.observe()
        run.finish()
        run.check()
        assert (run.report[:, 6] == step + 1).all()
        if step >= 3:
            assert (run.report[:, 2] == 1).all(), "the bracket proved it"
    assert (run.report[:, 5] < 6).all()
    assert (run.brackets[:, 0] <= run.report[:, 0]).all() and (run.report[:, 0] < run.brackets[:, 1]).all()


def test_the_specification_says_the_same(device):
    runs = Run(device), Run(device)
    for step in range(4):
        for one, backend in zip(runs, ("reference", "triton"), strict=True):
            with launch.forced(backend):
                one.move(0.01 if step < 3 else 0.3)
                one.observe()
                one.finish(exact=step == 2)
        torch.testing.assert_close(runs[1].coefficients, runs[0].coefficients, rtol=1e-6, atol=0)
        torch.testing.assert_close(runs[1].brackets, runs[0].brackets, rtol=1e-12, atol=0)
        torch.testing.assert_close(runs[1].report, runs[0].report, rtol=1e-12, atol=1e-12)


def test_float64(device):
    with launch.forced("triton"):
        run = Run(device, torch.float64)
        for _ in range(3):
            run.move(0.001)
            run.observe()
            run.finish()
            run.check()
    assert (run.report[:, 2] == 1).all()


def test_mostly_zeros_and_overflow(run):
    for w in run.weights:
        w[: int(0.9 * len(w))] = 0
    run.brackets[:] = torch.tensor([0.0, math.inf])  # every weight is a candidate: more than there is room for
    for _ in range(2):
        run.observe()
        run.finish()
        run.check()
        assert (run.coefficients[:, 2:] == 0).all()
    assert (run.report[:, 2] == 1).all(), "the count of zeros proves the next zero"


def test_what_was_not_swept_is_left_alone(run):
    before = run.brackets.clone()
    run.finish()
    assert torch.equal(run.brackets, before) and not run.report.any()
    run.finish(exact=True)
    run.check()


def test_a_nan_keeps_the_last_threshold(run):
    run.observe()
    run.finish()
    thresholds, coefficients = run.report[:, 0].clone(), run.coefficients.clone()
    run.weights[1][7] = math.nan
    run.observe()
    run.finish(exact=False)
    assert torch.equal(run.report[:, 0], thresholds) and torch.equal(run.coefficients[1], coefficients[1])
    assert run.report[:, 7].tolist() == [0, 1]
    run.finish(exact=True)
    assert run.report[:, 7].tolist() == [0, 1]


def test_rank_0_only_clears(run):
    run.observe()
    run.finish(ranks=[0, 0])
    assert not run.statistics.any() and not run.report.any()
