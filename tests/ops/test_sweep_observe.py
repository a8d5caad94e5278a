"""sweep_observe_ against sums in float64: it masks the weights and takes the statistics of what remains."""

import pytest
import torch
from sweep_problems import EPSILON, SCOPES, check_sums, problem

from sparse_ops.ops.sweep_observe import sweep_observe_


def check_observe(dtype, masked):
    weights, _, bits, tables = problem(dtype)
    if masked:
        keep = [((b[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()[: len(w)].bool()
                for b, w in zip(bits, weights, strict=True)]  # fmt: skip
        expected = [torch.where(k, w, 0.0) for k, w in zip(keep, weights, strict=True)]
        for k, w in zip(keep, weights, strict=True):
            w[~k] = float("nan")
    else:
        expected = [w.clone() for w in weights]
    sweep_observe_(weights, bits if masked else [], SCOPES, *tables)
    for w, e in zip(weights, expected, strict=True):
        assert torch.equal(w, e)
        assert not torch.signbit(w[e == 0]).any()
    for row in range(2):
        u = torch.cat([e.double().abs() for e, scope in zip(expected, SCOPES, strict=True) if scope == row])
        s, (low, high) = tables[0][row, 2], tables[1][row]
        t, c = torch.tanh(s * u), 1 / torch.cosh(s * u) ** 2
        sums = torch.stack([u.sum(), t.sum(), (u * c).sum(), (u * u * t * c).sum()])
        check_sums(tables[2][row, :4], sums, dtype)
        inside = u[(u >= low) & (u < high)]
        assert tables[2][row, 4:].tolist() == [(u >= high).sum(), len(inside), len(u)]
        assert torch.equal(tables[3][row, : len(inside)].double().sort().values, inside.sort().values)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_observes(masked, backend):
    check_observe(torch.float32, masked)


@pytest.mark.parametrize("dtype", EPSILON, ids=str)
def test_observes_in_every_instruction_set(dtype, isa):
    check_observe(dtype, masked=True)
    check_observe(dtype, masked=False)


def test_is_a_lawful_torch_op(backend):
    weights, _, bits, tables = problem(torch.float32)
    torch.library.opcheck(torch.ops.sparse_ops.sweep_observe_.default, (weights, bits, SCOPES, *tables))


def test_names_the_culprit():
    weights, _, _, tables = problem(torch.float32)
    with pytest.raises(ValueError, match=r"weights\[0\] and weights\[1\] share memory"):
        sweep_observe_([weights[5], weights[5][3:]], [], [0, 0], *tables)
    with pytest.raises(TypeError, match=r"weights\[0\] is torch.int64"):
        sweep_observe_([torch.arange(3)], [], [0], *tables)
