"""A model pruned elsewhere, here by torch.nn.utils.prune, runs sparse on the CPU and is saved small.

python examples/pruned_to_cpu.py
"""

import copy
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import prune

import sparse_ops


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(2048, 1024),
        nn.ReLU(),
        nn.Linear(1024, 10),
    ).eval()


def main() -> float:
    torch.manual_seed(0)
    model = network()
    dense_bytes = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    pruned = copy.deepcopy(model)
    weights = [(m, "weight") for m in pruned if isinstance(m, nn.Conv2d | nn.Linear)]
    prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=0.98)

    example = torch.randn(32, 3, 32, 32)
    sparse = sparse_ops.sparsify(pruned, example)  # prints what it measured and chose, layer by layer
    with torch.inference_mode():
        difference = (sparse(example) - pruned(example)).abs().max().item()
    print(f"largest difference of an output: {difference:.1e}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        sparse_ops.save(sparse, path)
        print(f"{path.stat().st_size:,} bytes on disk; the dense tensors hold {dense_bytes:,}")
        loaded = sparse_ops.load(path, network())
    with torch.inference_mode():
        return max(difference, (loaded(example) - sparse(example)).abs().max().item())


if __name__ == "__main__":
    main()
