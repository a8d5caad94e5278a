"""The loop in the README, copied as it stands, trains and runs sparse."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.mark.filterwarnings("ignore::sparse_ops.methods.collapse.CollapseWarning")  # 29 weights for 64 units
def test_the_loop_of_the_readme_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
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


def test_the_readme_is_short_and_its_files_exist():
    text = README.read_text()
    assert len(text.splitlines()) <= 120
    root = README.parent
    for name in re.findall(r"`((?:docs|examples|recipes)/[\w/.]+\.\w+)`|\((docs/[\w/.]+)\)", text):
        path = next(filter(None, name))
        assert (root / path).exists(), path
