"""LearningRates: what the groups began with, and when it is written."""

import torch
from torch import nn

from sparse_ops.methods.learning_rates import LearningRates


def test_the_initial_rates_of_groups_old_and_new():
    a, b, c = (nn.Parameter(torch.ones(1)) for _ in range(3))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 0.01, "initial_lr": 0.2}, {"params": [b]}], lr=0.1)
    rates = LearningRates(optimizer)
    assert rates.base == [0.2, 0.1]  # a scheduler that has begun to lower the first has noted what it was
    optimizer.add_param_group({"params": [c], "lr": 0.4})
    rates.set(0.5, begins=False)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05, 0.4]  # not known yet
    rates.know_groups()
    rates.set(0.25, begins=False)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.025, 0.1]


def test_a_rate_is_written_where_the_factor_changes_or_a_phase_begins():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    rates = LearningRates(optimizer)
    (group,) = optimizer.param_groups
    group["lr"] = 0.07  # of a user's schedule
    rates.set(1.0, begins=False)
    assert group["lr"] == 0.07
    rates.set(1.0, begins=True)
    assert group["lr"] == 0.1


def test_a_rate_in_a_tensor_stays_in_it():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=torch.tensor(0.5))
    rates, held = LearningRates(optimizer), optimizer.param_groups[0]["lr"]
    rates.set(0.5, begins=False)
    assert optimizer.param_groups[0]["lr"] is held and held.item() == 0.25
