"""regularized_adamw_ against torch.optim.AdamW and against the specification in float64."""

import pytest
import torch

from sparse_ops.ops.regularized_adamw import regularized_adamw_
from sparse_ops.reference import regularized_adamw as reference

SIZES, SCOPES = [0, 1, 7, 15, 17, 1000, 16384 + 3], [0, 1, 0, 1, -1, 0, 1]
EPSILON = {torch.float32: 6e-8, torch.float64: 1.2e-16, torch.float16: 4.9e-4, torch.bfloat16: 3.9e-3}
RULE = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}


def problem(dtype, amsgrad=False, masked=False):
    rng = torch.Generator().manual_seed(0)
    weights, grads, m, v, largest = ([torch.randn(n, generator=rng).to(dtype) for n in SIZES] for _ in range(5))
    bits = [torch.randint(0, 256, ((n + 7) // 8,), generator=rng, dtype=torch.uint8) for n in SIZES]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "weights": weights,
        "grads": grads,
        "exp_avgs": m,
        "exp_avg_sqs": [x * x for x in v],
        "max_exp_avg_sqs": [x * x for x in largest] if amsgrad else [],
        "steps": [torch.tensor(float(3 + i)) for i in range(len(SIZES))],
        "masks": bits if masked else [],
        "groups": [],
        "scopes": SCOPES,
        "coefficients": torch.tensor([[0.05, 0.02, 0.3, 3.7], [0.07, 0.01, 0.9, 1.7]], dtype=torch.float64),
        "brackets": torch.tensor([[1.0, 1.5], [0.5, 0.75]], dtype=torch.float64),
        "statistics": torch.zeros(2, 7, dtype=torch.float64),
        "candidates": torch.full((2, 9000), float("nan"), dtype=wide),
    }


def in_float64(p):
    floats = {
        k: [t.double().clone() for t in v] for k, v in p.items() if isinstance(v, list) and k not in ("masks", "scopes")
    }
    tables = {k: v.double().clone() for k, v in p.items() if torch.is_tensor(v)}
    return p | floats | tables


def check(dtype, penalty, amsgrad, masked):
    p = problem(dtype, amsgrad, masked)
    expected = in_float64(p)
    regularized = {"penalty": penalty, "maximize": True, **RULE}
    scale = torch.tensor(4.0)
    scalars = {"lr_tensor": None, "grad_scale": scale.double(), "found_inf": None}
    reference.regularized_adamw_(**expected, **regularized, **scalars)
    regularized_adamw_(**p, **regularized, grad_scale=scale, found_inf=torch.zeros(1))
    for name in ("weights", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"):
        for value, wanted in zip(p[name], expected[name], strict=True):
            close = {"rtol": 16 * EPSILON[dtype], "atol": 2e2 * min(EPSILON[dtype], 6e-8)}
            torch.testing.assert_close(value.double(), wanted, **close)
            assert not masked or torch.equal(value == 0, wanted.to(dtype) == 0)
    for row in range(2):
        u = torch.cat([w.double().abs() for w, scope in zip(p["weights"], SCOPES, strict=True) if scope == row])
        relative = 1e-12 if dtype == torch.float64 else 1e-6
        tanh = torch.tanh(p["coefficients"][row, 2] * u).sum()
        torch.testing.assert_close(p["statistics"][row, :2], torch.stack([u.sum(), tanh]), rtol=relative, atol=0)
        low, high = p["brackets"][row]
        assert p["statistics"][row, 4:].tolist() == [(u >= high).sum(), ((u >= low) & (u < high)).sum(), len(u)]


@pytest.mark.parametrize("amsgrad", [False, True], ids=["adamw", "amsgrad"])
@pytest.mark.parametrize("penalty", ["none", "l1", "l2", "growing_l2", "hypersparse"])
def test_follows_the_specification(penalty, amsgrad, backend):
    check(torch.float32, penalty, amsgrad, masked=True)


@pytest.mark.parametrize("dtype", EPSILON, ids=str)
@pytest.mark.parametrize("amsgrad", [False, True], ids=["adamw", "amsgrad"])
def test_every_instruction_set(amsgrad, dtype, isa):
    check(dtype, "hypersparse", amsgrad, masked=False)
    check(dtype, "l1", amsgrad, masked=True)


@pytest.mark.parametrize("amsgrad", [False, True], ids=["adamw", "amsgrad"])
@pytest.mark.parametrize("fused", [False, True], ids=["default", "fused"])
def test_follows_torch(fused, amsgrad):
    p = problem(torch.float32, amsgrad)
    for name in ("exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "steps"):
        for t in p[name]:
            t.zero_()
    parameters = [w.clone().requires_grad_() for w in p["weights"]]
    options = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1, "amsgrad": amsgrad}
    optimizer = torch.optim.AdamW(parameters, **options, fused=fused, foreach=False)
    rng = torch.Generator().manual_seed(1)
    for _ in range(4):
        for g, parameter, step in zip(p["grads"], parameters, p["steps"], strict=True):
            parameter.grad = g.copy_(torch.randn(g.shape, generator=rng))
            step += 1
        optimizer.step()
        regularized_adamw_(**p, penalty="none", **RULE)
    for w, parameter in zip(p["weights"], parameters, strict=True):
        torch.testing.assert_close(w, parameter.detach(), rtol=1e-6, atol=4e-7)


def test_masked_weights_and_their_moments_are_positive_zeros(backend):
    p = problem(torch.float32, amsgrad=True, masked=True)
    for i, bits in enumerate(p["masks"]):
        pruned = ((bits[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()[: SIZES[i]] == 0
        for name in ("grads", "exp_avgs", "exp_avg_sqs"):
            p[name][i][pruned] = float("nan")
    regularized_adamw_(**p, penalty="hypersparse", **RULE)
    for i, bits in enumerate(p["masks"]):
        pruned = ((bits[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()[: SIZES[i]] == 0
        for name in ("weights", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"):
            assert not p[name][i].isnan().any()
            assert not p[name][i][pruned].any() and not torch.signbit(p[name][i][pruned]).any()


def test_is_a_lawful_torch_op(backend):
    p = problem(torch.float32, amsgrad=True, masked=True)
    arguments = (*p.values(), "hypersparse", 0.01, 0.9, 0.99, 1e-8, 0.1, False, None, None, None)
    torch.library.opcheck(torch.ops.sparse_ops.regularized_adamw_.default, arguments)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=str)
def test_a_learning_rate_in_a_tensor(kind, backend):
    """The same bits as the number that the tensor holds, in the step size as in the decay; the number is not used."""
    parts = [problem(torch.float32, amsgrad=True, masked=True) for _ in range(2)]
    rate = torch.tensor(0.01, dtype=kind)
    for p, lr in zip(parts, (rate.item(), rate), strict=True):
        regularized_adamw_(**p, penalty="hypersparse", **RULE | {"lr": lr})
    for name in ("weights", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "statistics"):
        torch.testing.assert_close(parts[1][name], parts[0][name], rtol=0, atol=0)
    assert not torch.equal(parts[0]["weights"][5], problem(torch.float32)["weights"][5])
    arguments = (*parts[1].values(), "hypersparse", 0.0, 0.9, 0.99, 1e-8, 0.1, False, rate, None, None)
    torch.library.opcheck(torch.ops.sparse_ops.regularized_adamw_.default, arguments)


def test_names_the_culprit():
    p = problem(torch.float32)
    for message, changes in (
        ("7 weights but 6 exp_avg_sqs", {"exp_avg_sqs": p["exp_avg_sqs"][1:]}),
        ("7 weights but 0 steps", {"steps": []}),
        (r"steps\[0\] is torch.int64 \(\), expected one float32", {"steps": [torch.tensor(1)] * 7}),
        (r"lr is torch.float32 \(2,\), expected one", {"lr": torch.ones(2)}),
        ("lr is on meta, weights.0. on cpu", {"lr": torch.ones((), device="meta")}),
        ("beta2 is 1.0, expected 0 <= beta2 < 1", {"beta2": 1.0}),
    ):
        with pytest.raises(ValueError, match=message):
            regularized_adamw_(**p | {"penalty": "none", "lr": 0.1} | changes)
