"""sparse-ops export: the network of a finished run, as a file that computes what the run's network does."""

import pytest
import torch

import sparse_ops
from sparse_ops import cli
from sparse_ops.train import deploy, networks

RECIPE = """
[data]
name = "digits"
[network]
name = "mlp"
width = 32
[method]
name = "oneshot"
sparsity = 0.9
pretrain_epochs = 1
finetune_epochs = 1
"""


@pytest.mark.filterwarnings("ignore:.*lose all their inputs:UserWarning")
def test_exports_the_network_of_a_run(tmp_path, capsys, monkeypatch):
    pytest.importorskip("sklearn")
    for name, value in {"ROUNDS": 3, "SAMPLE_SECONDS": 1e-4, "THREADS": 1}.items():
        monkeypatch.setattr(deploy, name, value)
    recipe, run, out = tmp_path / "own.toml", tmp_path / "run", tmp_path / "own.pt2"
    recipe.write_text(RECIPE)
    assert cli.main(["train", str(recipe), "--run", str(run)]) == 0
    assert cli.main(["export", str(run), "--out", str(out), "--batch", "8"]) == 0
    assert "float32, batch 8" in capsys.readouterr().out
    model = sparse_ops.load(run / "model.safetensors", networks.build("mlp", (1, 8, 8), 10, width=32)).eval()
    x = torch.randn(8, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(sparse_ops.load_exported(out)(x), model(x), rtol=1e-5, atol=1e-5)
