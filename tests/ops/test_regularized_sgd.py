"""regularized_sgd_ against the specification in float64, against torch.optim.SGD, and its invariances."""

import pytest
import torch
from sweep_problems import check_sums

from sparse_ops import launch
from sparse_ops.ops.regularized_sgd import regularized_sgd_
from sparse_ops.reference import regularized_sgd as reference

SIZES = [0, 1, 7, 15, 17, 1000, 16384 + 3]
SCOPES = [0, 1, 0, 1, -1, 0, 1]
EPSILON = {torch.float32: 6e-8, torch.float64: 1.2e-16, torch.float16: 4.9e-4, torch.bfloat16: 3.9e-3}
PENALTIES = ["none", "l1", "l2", "growing_l2", "hypersparse"]
RULES = {
    "plain": {"weight_decay": 0.01},
    "momentum": {"momentum": 0.9, "dampening": 0.3},
    "first": {"momentum": 0.9, "dampening": 0.3, "first_step": True, "weight_decay": 0.01},
    "nesterov": {"momentum": 0.9, "nesterov": True, "maximize": True, "weight_decay": 0.01},
}


def packed(n, rng):
    return torch.randint(0, 256, ((n + 7) // 8,), generator=rng, dtype=torch.uint8)


def problem(dtype, momentum=True, masked=False, grouped=False, seed=0, sizes=SIZES, scopes=SCOPES):
    """The op's tensors; the momenta are poisoned where no one may read them, the candidates everywhere."""
    rng = torch.Generator().manual_seed(seed)
    weights, grads, momenta = ([torch.randn(n, generator=rng).to(dtype) for n in sizes] for _ in range(3))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "weights": weights,
        "grads": grads,
        "momenta": momenta if momentum else [],
        "masks": [packed(n, rng) for n in sizes] if masked else [],
        "groups": [packed(n, rng) for n in sizes] if grouped else [],
        "scopes": scopes,
        "coefficients": torch.tensor([[0.05, 0.02, 0.3, 3.7], [0.07, 0.01, 0.9, 1.7]], dtype=torch.float64),
        "brackets": torch.tensor([[1.9, 2.0], [0.5, 0.52]], dtype=torch.float64),
        "statistics": torch.zeros(2, 7, dtype=torch.float64),
        "candidates": torch.full((2, 2000), float("nan"), dtype=wide),
    }


def keep_of(p, i):
    n = p["weights"][i].numel()
    bits = p["masks"][i] if p["masks"] else torch.full(((n + 7) // 8,), 255, dtype=torch.uint8)
    return ((bits[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()[:n].bool()


def in_float64(p):
    def convert(x):
        if isinstance(x, list):
            return [convert(t) for t in x]
        return x.double() if torch.is_tensor(x) and x.is_floating_point() else x

    return {name: convert(x) for name, x in p.items()}


def copies(p):
    return {k: [t.clone() if torch.is_tensor(t) else t for t in v] if isinstance(v, list) else v.clone()
            for k, v in p.items()}  # fmt: skip


def check_statistics(p, dtype):
    """The sums, counts and candidates are those of the weights that the op wrote."""
    for row in range(2):
        mine = [w.double().abs() for w, scope in zip(p["weights"], p["scopes"], strict=True) if scope == row]
        u, s = torch.cat(mine), p["coefficients"][row, 2]
        t, (low, high) = torch.tanh(s * u), p["brackets"][row].float().double()
        sech2 = 1 / torch.cosh(s * u) ** 2
        sums = torch.stack([u.sum(), t.sum(), (u * sech2).sum(), (u * u * t * sech2).sum()])
        check_sums(p["statistics"][row, :4], sums, dtype)
        inside = u[(u >= low) & (u < high)]
        assert p["statistics"][row, 4:].tolist() == [(u >= high).sum(), inside.numel(), u.numel()]
        found = p["candidates"][row, : inside.numel()].double()
        assert torch.equal(found.sort().values, inside.sort().values)
        assert p["candidates"][row, inside.numel() :].isnan().all()


def check(dtype, penalty, rule, masked, grouped=False):
    settings = RULES[rule]
    p = problem(dtype, "momentum" in settings, masked, grouped or penalty == "growing_l2")
    for i, (g, m) in enumerate(zip(p["grads"], p["momenta"] or p["grads"], strict=True)):
        g[~keep_of(p, i)] = float("nan")
        if settings.get("first_step"):
            m.fill_(float("nan"))
    p["brackets"] = p["brackets"].float().double()  # the specification compares in float64 here
    grads = [g.clone() for g in p["grads"]]
    scale = torch.tensor(4.0)
    expected = in_float64(copies(p))
    defaults = {
        "momentum": 0.0,
        "dampening": 0.0,
        "weight_decay": 0.0,
        "nesterov": False,
        "maximize": False,
        "first_step": False,
    }
    reference.regularized_sgd_(
        **expected,
        penalty=penalty,
        lr=0.1,
        **defaults | settings,
        lr_tensor=None,
        grad_scale=scale.double(),
        found_inf=None,
    )
    regularized_sgd_(**p, penalty=penalty, lr=0.1, **settings, grad_scale=scale, found_inf=torch.zeros(1))
    for i, (new, old) in enumerate(zip(p["grads"], grads, strict=True)):
        torch.testing.assert_close(new, old, rtol=0, atol=0, equal_nan=True)
        for name in ("weights", "momenta")[: 1 + bool(p["momenta"])]:
            value = p[name][i]
            close = {"rtol": 2 * EPSILON[dtype], "atol": 2e2 * min(EPSILON[dtype], 6e-8)}  # one rounding, float32 sums
            torch.testing.assert_close(value.double(), expected[name][i], **close)
            pruned = value[~keep_of(p, i)]
            assert not pruned.any() and not torch.signbit(pruned).any()
    check_statistics(p, dtype)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_every_rule(penalty, rule, masked, backend):
    check(torch.float32, penalty, rule, masked)


@pytest.mark.parametrize("dtype", EPSILON, ids=str)
@pytest.mark.parametrize("rule", ["plain", "nesterov"])
@pytest.mark.parametrize("penalty", ["none", "growing_l2", "hypersparse"])
def test_every_type(penalty, rule, dtype, backend):
    check(dtype, penalty, rule, masked=True)


@pytest.mark.parametrize("dtype", EPSILON, ids=str)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_every_instruction_set(penalty, dtype, isa):
    check(dtype, penalty, "momentum", masked=True)
    check(dtype, penalty, "plain", masked=False, grouped=True)


@pytest.mark.parametrize("settings", RULES.values(), ids=RULES)
@pytest.mark.parametrize("fused", [True, False])
def test_follows_torch(fused, settings, device):
    p = problem(torch.float32)
    settings = {k: v for k, v in settings.items() if k != "first_step"}
    parameters = [w.clone().requires_grad_() for w in p["weights"]]
    optimizer = torch.optim.SGD(parameters, lr=0.1, **settings, fused=fused, foreach=False)
    p["momenta"] = [torch.full_like(w, float("nan")) for w in p["weights"]] if "momentum" in settings else []
    rng = torch.Generator().manual_seed(1)
    for step in range(3):
        for g, parameter in zip(p["grads"], parameters, strict=True):
            parameter.grad = g.copy_(torch.randn(g.shape, generator=rng))
        optimizer.step()
        regularized_sgd_(**p, penalty="none", lr=0.1, first_step=step == 0, **settings)
    for w, parameter in zip(p["weights"], parameters, strict=True):
        torch.testing.assert_close(w, parameter.detach(), rtol=4 * 1.2e-7, atol=4e-7)


def test_penalties_are_gradients(backend):
    """Each penalty against autograd of its loss: w - lr * gradient, without any other term."""
    s, ratio, strength = 0.3, 3.7, 0.05
    losses = {
        "l1": lambda w: w.abs().sum(),
        "l2": lambda w: (w * w).sum(),
        "hypersparse": lambda w: ratio * torch.tanh(s * w.abs()).sum(),
    }
    for name, loss in losses.items():
        p = problem(torch.float64, momentum=False)
        before = [w.clone().requires_grad_() for w in p["weights"]]
        p["grads"] = [torch.zeros_like(w) for w in before]
        with launch.forced("native" if backend == "triton" else backend):  # float64
            regularized_sgd_(**p, penalty=name, lr=1.0)
        for i in (0, 2, 5):  # scope 0
            (gradient,) = torch.autograd.grad(strength * loss(before[i]), before[i])
            torch.testing.assert_close(p["weights"][i], (before[i] - gradient).detach(), rtol=1e-13, atol=1e-14)


def test_mixed_types_round_once(isa):
    """bfloat16 weights with float32 gradients and momenta, against float32 arithmetic rounded at the end."""
    p = problem(torch.float32)
    p["weights"] = [w.bfloat16() for w in p["weights"]]
    expected = copies(p)
    expected["weights"] = [w.float() for w in p["weights"]]
    settings = {"penalty": "l2", "lr": 0.1, "momentum": 0.9}
    regularized_sgd_(**expected, **settings)
    regularized_sgd_(**p, **settings)
    for i in range(len(SIZES)):
        assert torch.equal(p["weights"][i], expected["weights"][i].bfloat16())
        assert torch.equal(p["momenta"][i], expected["momenta"][i])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_for_any_number_of_threads(dtype, isa):
    sizes = [100_000, 3, 40_001]
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 2, 5):
            torch.set_num_threads(n)
            p = problem(dtype, masked=True, sizes=sizes, scopes=[0, 1, 0])
            regularized_sgd_(**p, penalty="hypersparse", lr=0.1, momentum=0.9)
            results.append([*p["weights"], *p["momenta"], p["statistics"], p["candidates"].sort().values])
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("threshold", [2e-39, 3.5e-39, 5e-39, 8e-39, 1e-30, 1e30])
def test_hypersparse_at_any_scale(isa, threshold):
    """Also where s |w| is of order 1, but s times 2 / ln 2 leaves float32."""
    p = problem(torch.float32, sizes=[5000], scopes=[0])
    p["weights"] = [(torch.randn(5000, generator=torch.Generator().manual_seed(3)) * threshold).float()]
    p["grads"], p["momenta"] = [torch.zeros(5000)], []
    u, s = p["weights"][0].double().abs(), 0.6585 / threshold
    ratio = u.sum() / torch.tanh(s * u).sum()
    p["coefficients"][0] = torch.tensor([1.0, 0.0, s, ratio])
    before = p["weights"][0].double()
    regularized_sgd_(**p, penalty="hypersparse", lr=threshold / 8)
    expected = threshold / 8 * before.sign() * (s * ratio) / torch.cosh(s * before) ** 2
    # the weights are multiples of the least subnormal number, half of which their rounding may add
    error = (before - p["weights"][0].double() - expected).abs()
    assert (error <= 2e-6 * expected.abs() + 2**-23 * u + 2**-149).all()


def test_another_split_gives_the_same_sums(isa):
    whole = problem(torch.float32, sizes=[50_000], scopes=[0])
    split = copies(whole)
    for name in ("weights", "grads", "momenta"):
        split[name] = [t.clone() for t in whole[name][0].split([1, 16384, 17, 33598])]
    split["scopes"] = [0] * 4
    for p in (whole, split):
        regularized_sgd_(**p, penalty="hypersparse", lr=0.1, momentum=0.9)
    assert torch.equal(torch.cat(split["weights"]), whole["weights"][0])
    tolerances = [1e-12, 1e-12, 1e-12, 2e-6, 0, 0, 0]  # T2 in float32 over blocks: it meets (ds/s)^2 < 1e-4 alone
    for column, tolerance in enumerate(tolerances):
        a, b = split["statistics"][:, column], whole["statistics"][:, column]
        torch.testing.assert_close(a, b, rtol=tolerance, atol=0)
    assert torch.equal(split["statistics"][:, 4:], whole["statistics"][:, 4:])


@pytest.mark.parametrize("bulk", [1e-4, 1e-5, 1e-6])
def test_another_split_where_nearly_all_weights_are_tiny(bulk, isa):
    """A few large weights in each running sum cost the small ones their last bits, other ones in each split."""
    n = 50_000
    w = bulk * torch.randn(n, generator=torch.Generator().manual_seed(0))
    w[:: n // 5] = 0.9
    found = []
    for sizes in ([n], [16_666, 16_666, 16_668], [1, 16_384, 17, 33_598], [7] * 100 + [n - 700]):
        p = problem(torch.float32, momentum=False, sizes=sizes, scopes=[0] * len(sizes))
        p["weights"], p["grads"] = [t.clone() for t in w.split(sizes)], [torch.zeros(size) for size in sizes]
        p["coefficients"][0, 2] = 1.0
        p["brackets"][0] = torch.tensor([0.6584, 0.6586])
        regularized_sgd_(**p, penalty="none", lr=0.1)
        found.append(p["statistics"][0, :3])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=0)


@pytest.mark.parametrize("sparsity", [0.9, 0.98, 0.998])
def test_the_sum_of_tanh_where_all_pruned_weights_are_alike(sparsity, isa):
    """Errors of equal weights do not cancel: the worst for A, whose relative error shall stay below 1e-6."""
    n = 20_000
    for x in [1e-9, 1e-5, 1e-3, 0.0025, 0.0031, 0.0054, 0.011, 0.0312, *torch.logspace(-2, -0.2, 20).tolist()]:
        u = torch.full((n,), x)
        u[: round((1 - sparsity) * n)] = 0.6585
        p = problem(torch.float32, momentum=False, sizes=[n], scopes=[0])
        p["weights"], p["grads"] = [u], [torch.zeros(n)]
        p["coefficients"][0, 2] = s = 1.0000001
        p["brackets"][0] = torch.tensor([0.6584, 0.6586])
        regularized_sgd_(**p, penalty="none", lr=0.1)
        assert p["statistics"][0, 1].item() == pytest.approx(torch.tanh(s * u.double()).sum().item(), rel=1e-6)


def test_sums_beyond_float32(isa):
    """N is a float64: it may be finite where sums of 16 weights are not."""
    p = problem(torch.float32, momentum=False, sizes=[40_000], scopes=[0])
    p["weights"], p["grads"] = [torch.full((40_000,), -3e38)], [torch.zeros(40_000)]
    regularized_sgd_(**p, penalty="none", lr=0.1)
    expected = p["weights"][0].double().abs().sum().item()
    assert p["statistics"][0, 0].item() == pytest.approx(expected, rel=1e-12)
    assert p["statistics"][0, 1].item() == pytest.approx(40_000, rel=1e-6)


def test_channels_last_walks_the_storage(backend):
    p = problem(torch.float32, masked=True, sizes=[2 * 3 * 4 * 5], scopes=[0])
    flat = copies(p)
    order = (2, 4, 5, 3)
    for name in ("weights", "momenta"):
        p[name] = [t.view(order).permute(0, 3, 1, 2) for t in p[name]]
    p["grads"] = [t.view(order).permute(0, 3, 1, 2).contiguous() for t in p["grads"]]  # other strides than the weight's
    state = p["momenta"][0] = p["momenta"][0].contiguous()  # as a loaded optimiser state may have
    for q in (p, flat):
        regularized_sgd_(**q, penalty="l1", lr=0.1, momentum=0.9)
    assert torch.equal(p["weights"][0].permute(0, 2, 3, 1).flatten(), flat["weights"][0])
    assert torch.equal(state.permute(0, 2, 3, 1).flatten(), flat["momenta"][0])


def test_found_inf_changes_nothing(backend):
    p = problem(torch.float32)
    before = copies(p)
    p["grads"][3].fill_(float("inf"))
    regularized_sgd_(**p, penalty="l2", lr=0.1, momentum=0.9, found_inf=torch.full((1,), 2.0))
    for name in ("weights", "momenta"):
        assert all(torch.equal(a, b) for a, b in zip(p[name], before[name], strict=True))
    assert not p["statistics"].any()


def test_candidates_overflow_is_counted(backend):
    p = problem(torch.float32)
    p["candidates"] = torch.full((2, 50), float("nan"))
    p["brackets"][:] = torch.tensor([0.1, 3.0])
    versions = [t._version for t in (*p["weights"], *p["momenta"], p["statistics"], p["candidates"])]
    regularized_sgd_(**p, penalty="none", lr=0.1, momentum=0.9)
    after = [t._version for t in (*p["weights"], *p["momenta"], p["statistics"], p["candidates"])]
    assert all(b > a for a, b in zip(versions, after, strict=True))
    for row in range(2):
        u = torch.cat([w.abs() for w, scope in zip(p["weights"], SCOPES, strict=True) if scope == row])
        inside = u[(u >= 0.1) & (u < 3)]
        assert p["statistics"][row, 5] == inside.numel() > 50
        assert torch.isin(p["candidates"][row], inside).all()


def test_is_a_lawful_torch_op(backend):
    p = problem(torch.float32, masked=True)
    arguments = (*p.values(), "hypersparse", 0.1, 0.9, 0.0, 0.0, False, False, False, None, None, None)
    torch.library.opcheck(torch.ops.sparse_ops.regularized_sgd_.default, arguments)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=str)
def test_a_learning_rate_in_a_tensor(kind, backend):
    """The same bits as the number that the tensor holds; the number beside it is not used."""
    parts = [problem(torch.float32, masked=True) for _ in range(2)]
    rate = torch.tensor([0.1], dtype=kind)
    for p, lr in zip(parts, (rate.item(), rate), strict=True):
        regularized_sgd_(**p, penalty="hypersparse", lr=lr, momentum=0.9, weight_decay=0.01)
    for name in ("weights", "momenta", "statistics"):
        torch.testing.assert_close(parts[1][name], parts[0][name], rtol=0, atol=0)
    assert not torch.equal(parts[0]["weights"][5], problem(torch.float32)["weights"][5])
    arguments = (*parts[1].values(), "hypersparse", 0.0, 0.9, 0.0, 0.0, False, False, False, rate, None, None)
    torch.library.opcheck(torch.ops.sparse_ops.regularized_sgd_.default, arguments)


def wrong(message, error=ValueError, **changes):
    p = problem(torch.float32) | {"penalty": "l2", "lr": 0.1, "momentum": 0.9}
    with pytest.raises(error, match=message):
        regularized_sgd_(**p | changes)


def test_names_the_culprit():
    base = torch.randn(100)
    p = problem(torch.float32)
    pair = {"grads": p["grads"][:2], "momenta": p["momenta"][:2], "scopes": [0, 0]}
    pair = {k: v if k == "scopes" else [torch.randn(60), torch.randn(60)] for k, v in pair.items()}
    wrong(r"weights\[0\] and weights\[1\] share memory", weights=[base[:60], base[40:]], **pair)
    gaps = [torch.randn(60, 2)[:, 0], torch.randn(60)]
    wrong(r"weights\[0\] has gaps or overlaps, strides \(2,\)", weights=gaps, **pair)
    wrong("7 weights but 6 grads", grads=p["grads"][1:])
    wrong(r"grads\[1\] has shape \(2,\), weights\[1\] has \(1,\)", grads=[p["grads"][0], base[:2], *p["grads"][2:]])
    wrong(r"momenta\[0\] is torch.int64", TypeError, momenta=[torch.zeros(0, dtype=torch.int64), *p["momenta"][1:]])
    wrong("momentum is 0, so momenta must be an empty list", momentum=0.0)
    wrong("nesterov needs momentum and no dampening", nesterov=True, dampening=0.1)
    wrong(r"lr is torch.float32 \(2,\), expected one floating point number", lr=torch.ones(2))
    wrong("lr is torch.int64", lr=torch.ones((), dtype=torch.int64))
    wrong("lr is on meta, weights.0. on cpu", lr=torch.ones((), device="meta"))
    wrong("penalty is 'l3'; it may be one of none, l1", penalty="l3")
    wrong(r"scopes\[6\] is 2, expected -1 \(none\) or a row below 2", scopes=[*SCOPES[:6], 2])
    wrong(r"masks\[1\] is torch.uint8 \(2,\), expected uint8 \(1,\)", masks=[base[:0].byte(), *[base[:2].byte()] * 6])
    wrong(r"statistics is torch.float64 \(2, 6\)", statistics=torch.zeros(2, 6, dtype=torch.float64))
    wrong("is torch.float64, so candidates must be", weights=[w.double() for w in p["weights"]])
