"""Uses an installed sparse_ops as a user without a compiler would: train a step, prune, run sparse, save, load."""

import shutil
import tempfile
from pathlib import Path

import torch
from torch import nn

import sparse_ops
from sparse_ops import extension

assert shutil.which("c++") is None and shutil.which("gcc") is None, "a compiler is on the path"
assert "site-packages" in sparse_ops.__file__, sparse_ops.__file__
assert extension.failure() is None, extension.failure()

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 64, 256), nn.Linear(256, 10)
)
optimizer = sparse_ops.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
sparsifier = sparse_ops.methods.OneShot(model, optimizer, sparsity=0.98, pretrain_epochs=1, finetune_epochs=1)
x, y = torch.randn(64, 3, 8, 8), torch.randint(10, (64,))
while not sparsifier.finished:
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    sparsifier.end_epoch()
model = sparsifier.finalize().eval()
sparse = sparse_ops.sparsify(model, policy="all", verbose=False)
with torch.inference_mode():
    torch.testing.assert_close(sparse(x), model(x), rtol=1e-4, atol=1e-5)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "model.safetensors"
    sparse_ops.save(sparse, path)
    loaded = sparse_ops.load(path, model)
    with torch.inference_mode():
        assert torch.equal(loaded(x), sparse(x))
print(f"the wheel works without a compiler: sparse_ops {sparse_ops.__version__}, {extension.native().isa()}")
