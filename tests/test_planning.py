"""plan before training, sparsity_report after it."""

import json

import pytest
import torch
from small_networks import cnn
from torch import nn
from torch.nn.utils import prune

import sparse_ops
from sparse_ops import planning
from sparse_ops.nn import SparseLinear


def test_a_global_plan_knows_the_total():
    plan = sparse_ops.plan(cnn(), 0.9, exclude="7")
    n = 8 * 3 * 9 + 72 * 24
    assert (plan.weights, plan.zeros) == (n, int(0.9 * n + 0.5))
    assert [layer.zeros for layer in plan.layers] == [None, None]
    assert plan.skipped["7.weight"] == "excluded by exclude="
    text = str(plan)
    assert "8 x 3 x 3 x 3" in text and "from the total" in text and "7.weight: excluded" in text
    assert json.loads(json.dumps(plan.to_dict()))["layers"][1]["name"] == "5.weight"


@pytest.mark.parametrize("scope", ["uniform", "erk"])
def test_layer_plans_add_up_to_the_budget(scope):
    plan = sparse_ops.plan(cnn(), 0.83, scope=scope)
    assert sum(layer.zeros for layer in plan.layers) == plan.zeros == int(0.83 * plan.weights + 0.5)
    assert all(0 <= layer.zeros <= layer.weights for layer in plan.layers)


def test_min_nonzeros_as_in_the_methods():
    plan = sparse_ops.plan(cnn(), 0.9, scope="uniform", min_nonzeros=60)
    assert [layer.weights - layer.zeros for layer in plan.layers] == [60, 84, 60]
    assert plan.zeros == int(0.9 * plan.weights + 0.5)
    for scope in ("global", "uniform", "erk"):
        with pytest.raises(ValueError, match="min_nonzeros is 100, but the budget leaves 204 of 2040 weights"):
            sparse_ops.plan(cnn(), 0.9, scope=scope, min_nonzeros=100)


def test_break_even_by_kind():
    net = nn.Sequential(nn.Conv1d(4, 4, 3), nn.Conv2d(4, 8, 1), nn.Linear(4, 4))
    plan = sparse_ops.plan(net, 0.5)
    assert [layer.break_even_sparsity for layer in plan.layers] == [
        None,
        *map(planning.break_even_sparsity, (nn.Conv2d, nn.Linear)),
    ]
    assert all(0.5 <= layer.break_even_sparsity < 1 for layer in plan.layers[1:])
    assert "no sparse form" in str(plan)


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 98, float("nan")])
def test_a_sparsity_outside_its_range(sparsity):
    with pytest.raises(ValueError, match=f"sparsity is {sparsity}"):
        sparse_ops.plan(cnn(), sparsity)


def test_the_report_counts_dense_pruned_and_sparse_layers():
    rng = torch.Generator().manual_seed(0)
    net = nn.Sequential(*(nn.Linear(10, 10) for _ in range(4)), nn.Embedding(3, 10))
    with torch.no_grad():
        for layer in net[:4]:
            layer.weight.copy_(torch.randn(10, 10, generator=rng) * (torch.rand(10, 10, generator=rng) < 0.3))
    zeros = [int((layer.weight == 0).sum()) for layer in net[:4]]
    net[1] = SparseLinear.from_dense(net[1])
    prune.l1_unstructured(net[2], "weight", 90)
    net[3].weight = net[0].weight
    report = sparse_ops.sparsity_report(net)
    assert [layer.zeros for layer in report.layers] == [zeros[0], zeros[1], 90]
    assert [layer.name for layer in report.layers] == ["0.weight", "1.weight", "2.weight"]
    assert report.sparsity == pytest.approx((zeros[0] + zeros[1] + 90) / 300)
    assert report.parameters == 300 + 40 + 30
    assert "total" in str(report) and "SparseLinear" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["zeros"] == report.zeros


def test_report_counts_every_layer_that_torch_prunes():
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(5)))
    for layer in model:
        prune.l1_unstructured(layer, "weight", 0.75)
    for _ in range(3):
        report = sparse_ops.sparsity_report(model)
        assert [layer.zeros for layer in report.layers] == [3072] * 5
        assert report.sparsity == 0.75


def test_what_sparsify_leaves_dense_has_no_break_even():
    """The plan and sparsify agree on every layer of a transformer, whose out_proj is a subclass of Linear."""
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
    plan = sparse_ops.plan(model, 0.9)
    with torch.no_grad():
        for layer in plan.layers:
            model.get_parameter(layer.name).view(-1)[1:] = 0
    rows = sparse_ops.sparsify(model, policy="all", verbose=False).sparsify_table.layers
    sparse = {f"{row.name}.weight": row.sparse for row in rows}
    assert {layer.name: layer.break_even_sparsity is not None for layer in plan.layers} == sparse
    assert sum(sparse.values()) == 4 and len(sparse) == 6
    assert [layer.stays_dense for layer in plan.layers[:2]] == ["dense: a subclass of Linear", None]
    assert str(plan).count("dense: a subclass of Linear") == 2


def test_biases_do_not_hide_what_else_is_not_prunable():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 3)
    plan = sparse_ops.plan(model, 0.9)
    text = str(plan).partition("not prunable:\n")[2].splitlines()
    assert text == [
        "  layers.0.self_attn.in_proj_weight and 2 more: in_proj_weight of nn.MultiheadAttention is not prunable",
        "  layers.0.norm1.weight and 5 more: weight of nn.LayerNorm is not prunable",
        "  18 biases",
    ]
    assert len(plan.to_dict()["skipped"]) == 3 + 6 + 18
    assert str(sparse_ops.plan(nn.Linear(4, 4), 0.5)).endswith(
        "not prunable:\n  bias: bias of nn.Linear is not prunable"
    )
