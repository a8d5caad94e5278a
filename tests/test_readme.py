"""The loop in the README, copied as it stands, trains and runs sparse."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import sparse_ops
from sparse_ops.train import networks
from sparse_ops.train.recipe import read

README = Path(__file__).resolve().parents[1] / "README.md"
DEMO = README.parent / "bench" / "results" / "demo_cpu.jsonl"

LINKS = r"`((?:docs|examples|recipes)/[\w/.]+\.\w+)`|\((docs/[\w/.]+)\)"


def snippets():
    """The pieces of Python: the loop, and how the demo's model file is loaded."""
    loop, load = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    return loop, load


@pytest.mark.filterwarnings("ignore::sparse_ops.methods.collapse.CollapseWarning")  # 29 weights for 64 units
def test_the_loop_of_the_readme_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = snippets()[0]
    code = re.sub(r"(epochs)=\d+", r"\1=2", code)  # the paper's 320 epochs, shortened
    torch.manual_seed(0)
    x = torch.randn(256, 20)
    y = (x @ torch.randn(20, 3)).argmax(1)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3))
    scope = {
        "model": model,
        "batches": list(zip(x.split(32), y.split(32), strict=True)),
        "loss": nn.functional.cross_entropy,
        "evaluate": lambda m: (m(x).argmax(1) == y).float().mean().item(),
        "running_accuracy": 0.5,
        "example": x[:8],
    }
    exec(code, scope)
    zeros = sum(int((m.weight == 0).sum()) for m in scope["model"] if isinstance(m, nn.Linear))
    assert zeros == int(0.98 * (20 * 64 + 64 * 3) + 0.5)
    assert (tmp_path / "model.safetensors").stat().st_size > 0
    torch.testing.assert_close(scope["sparse"](x), scope["model"](x), rtol=1e-4, atol=1e-5)


def test_the_demo_s_model_file_is_loaded_as_the_readme_says(tmp_path, monkeypatch):
    """A network of the demo's recipe, pruned and made sparse, stands for the trained one."""
    monkeypatch.chdir(tmp_path)
    recipe = read(README.parent / "recipes" / "demo.toml")
    model = networks.build(recipe.network.name, (1, 8, 8), 10, width=recipe.network.width).eval()
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for weight, mask in zip(weights, sparse_ops.magnitude_mask(weights, 0.98), strict=True):
        weight.data.mul_(mask.to_dense())
    sparse = sparse_ops.sparsify(model, policy="all", verbose=False)
    path = tmp_path / "runs" / "demo" / "model.safetensors"
    path.parent.mkdir(parents=True)
    sparse_ops.save(sparse, path)
    scope = {"sparse_ops": sparse_ops}
    exec(snippets()[1], scope)
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(scope["network"](x), sparse(x), rtol=0, atol=0)


def test_the_figures_of_the_demo_are_those_of_its_record():
    record = json.loads(DEMO.read_text().splitlines()[-1])
    accuracies, cost = (line for line in README.read_text().splitlines() if line.startswith("| demo"))
    for key in ("dense_accuracy", "sparse_accuracy", "oneshot_accuracy"):
        assert f"{100 * record[key]:.1f} %" in accuracies, key
    for figure in (
        f"{record['dense_ms']:.2f} ms",
        f"{record['sparse_ms']:.2f} ms",
        f"{record['dense_bytes'] / 1e3:.0f} kB",
        f"{record['sparse_bytes'] / 1e3:.0f} kB",
        f"{record['dense_ms'] / record['sparse_ms']:.1f}x",
        f"{record['dense_bytes'] / record['sparse_bytes']:.1f}x",
    ):
        assert figure in cost, figure
    splits = "mean of five splits" if record["folds"] == 5 else "first split"
    assert splits in accuracies


def test_the_readme_is_short_and_its_files_exist():
    text = README.read_text()
    assert len(text.splitlines()) <= 120
    root = README.parent
    named = [next(filter(None, name)) for name in re.findall(LINKS, text)]
    for path in named:
        assert (root / path).exists(), path
    pages = [str(p.relative_to(root)) for p in (root / "docs").rglob("*.md")]
    assert not [page for page in pages if page not in named]
