"""SparseGates: its formula and gradients in float64, its guard, and a planted structure that it finds again."""

import copy

import pytest
import torch
from torch import nn

from sparse_ops.nn import SparseGates


def literal(alpha, beta):
    """exp(alpha) and their sum, as the paper's formulas have them."""
    g = alpha.exp()
    rest = torch.relu(g - torch.sigmoid(beta) * g.sum())
    return rest / rest.sum()


def gates(alpha, beta, **options):
    made = SparseGates(len(alpha), **options).double()
    made.alpha.data.copy_(torch.tensor(alpha)), made.beta.data.fill_(beta)
    return made


def test_formula_and_gradients():
    made = gates([0.5, -1.0, 2.0, -3.0, 1.0], -2.0, leaky="relu")
    alpha, beta = made.alpha.detach().clone().requires_grad_(), made.beta.detach().clone().requires_grad_()
    ours, wanted = made(), literal(alpha, beta)
    torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=0)
    assert made.open() == [0, 2, 4] and ours[1] == ours[3] == 0 and ours.sum().item() == pytest.approx(1)
    pull = torch.arange(1.0, 6.0, dtype=torch.float64)
    (ours * pull).sum().backward(), (wanted * pull).sum().backward()
    torch.testing.assert_close(made.alpha.grad, alpha.grad, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(made.beta.grad, beta.grad, rtol=1e-10, atol=1e-14)


def test_penalty_by_hand():
    made = gates([0.0] * 4, -30.0)  # equal gates: (4 * 1/4^p)^(1/p) = 4^(1/p - 1)
    assert made.penalty().item() == pytest.approx(4) and made.penalty(0.25).item() == pytest.approx(64)
    one = gates([9.0, 0.0, 0.0], 0.0)
    assert one.open() == [0] and one.penalty().item() == 1
    one.penalty().backward()
    assert one.alpha.grad.isfinite().all() and one.beta.grad.isfinite()


def test_one_gate_stays_open_and_closed_ones_may_come_back():
    made = gates([1.0, 2.0, 0.0], 10.0)  # sigmoid(10) is above every p
    assert made.open() == [1] and made().tolist() == [0, 1, 0]
    closed = gates([2.0, 2.0, -2.0], -2.0)
    (closed() * torch.tensor([0.0, 0.0, 1.0])).sum().backward()
    assert closed.open() == [0, 1] and closed.alpha.grad[2] > 0
    assert SparseGates(1)().tolist() == [1.0] and len(SparseGates(16).open()) == 16
    twin = copy.deepcopy(made)
    assert twin.load_state_dict(made.state_dict()) and twin.open() == [1]


@pytest.mark.parametrize("seed", range(5))
def test_three_planted_branches_of_sixteen_are_found(seed):
    rng = torch.Generator().manual_seed(seed)
    planted = sorted(torch.randperm(16, generator=rng)[:3].tolist())
    x = torch.randn(256, 16, 4, generator=rng)
    teachers = nn.functional.normalize(torch.randn(16, 4, generator=rng), dim=1)
    y = sum(x[:, i] @ teachers[i] for i in planted) + 0.1 * torch.randn(256, generator=rng)
    torch.manual_seed(seed)
    branches, made = nn.Parameter(torch.randn(16, 4) / 2), SparseGates(16)
    optimizer = torch.optim.Adam([branches, *made.parameters()], lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 250)
    for _ in range(250):
        loss = ((x * branches).sum(2) @ made() - y).square().mean() + 0.02 * made.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    assert made.open() == planted
    assert ((x * branches).sum(2) @ made() - y).square().mean() < 0.02


def test_refuses():
    for bad, message in (({"n": 0}, "n is 0"), ({"n": 2, "initial_share": 1.0}, "initial_share is 1.0")):
        with pytest.raises(ValueError, match=f"SparseGates: {message}"):
            SparseGates(**bad)
    with pytest.raises(ValueError, match="leaky is 'gelu'"):
        SparseGates(2, leaky="gelu")
    with pytest.raises(ValueError, match=r"p is 1.0, expected 0 < p < 1"):
        SparseGates(2).penalty(1.0)
