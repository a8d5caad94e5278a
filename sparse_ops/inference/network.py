"""InferenceNetwork: a fused graph with its forms and layouts, called like the model that it was made from."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparse_ops.inference.fuse import layer_nodes
from sparse_ops.inference.layers import Fused
from sparse_ops.recycling import Recycler


@dataclass(frozen=True)
class LayerRow:
    """One layer: its weight, share of zeros, form, what was measured, and the bytes of its tensors."""

    name: str
    kind: str
    shape: tuple[int, ...]
    sparsity: float
    sparse: bool
    batch_last: bool
    choice: str
    bytes: int


@dataclass(frozen=True)
class InferenceReport:
    """What was chosen and measured; times in milliseconds of the whole network on its example."""

    layers: tuple[LayerRow, ...]
    dtype: str
    batch: int
    machine: dict[str, Any]
    ms: dict[str, float]
    chosen: str
    error: float
    bytes: int
    dense_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [("layer", "weight", "form", "why", "bytes")]
        for row in self.layers:
            form = ("sparse" if row.sparse else "dense") + (", batch last" if row.batch_last else "")
            shape = f"{row.kind} {' x '.join(map(str, row.shape))}"
            rows.append((row.name, shape, form, row.choice, f"{row.bytes:,}"))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = ["  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        times = ", ".join(f"{name} {ms:.3f} ms" for name, ms in self.ms.items())
        where = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        return "\n".join(
            [
                *lines,
                "",
                f"{self.dtype}, batch {self.batch}, {where}: {times}; runs as {self.chosen}",
                f"tensors take {self.bytes:,} bytes, {self.dense_bytes:,} dense; "
                f"largest difference from the model, relative to its largest output: {self.error:.1e}",
            ]
        )


class InferenceNetwork(nn.Module):
    """What `optimize_for_inference` returns. Called like the model; evaluation mode only, no gradients.

    Floating inputs may have any floating dtype and are computed in the network's. A first dimension other than the
    example's is accepted where `free_batch` says so; other sizes are refused with a ValueError.
    """

    def __init__(self, graph: fx.GraphModule, inputs: Sequence[tuple[int, ...]], free_batch: bool, report: Any) -> None:
        super().__init__()
        self.graph = graph
        self.inputs = [tuple(shape) for shape in inputs]
        self.free_batch = free_batch
        self._report = report
        self._recycler = Recycler()
        self.training = False

    def report(self) -> InferenceReport:
        """Choices, times and bytes; print it."""
        return self._report

    def train(self, mode: bool = True) -> "InferenceNetwork":
        """Refuses True: norms are folded into weights."""
        if mode:
            raise ValueError("this network is for inference: norms are folded into its weights; train the model itself")
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's, in evaluation mode."""
        leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        skip = 1 if self.free_batch else 0
        for i, (leaf, expected) in enumerate(zip(leaves, self.inputs, strict=False)):
            if len(leaf.shape) != len(expected) or tuple(leaf.shape[skip:]) != expected[skip:]:
                raise ValueError(
                    f"tensor {i} of the input is {tuple(leaf.shape)}, this network is for "
                    f"{('any number', *expected[1:]) if skip else expected}"
                )
        with torch.no_grad(), self._recycler():
            return self.graph(*args, **kwargs)

    def layers(self) -> list[tuple[str, Fused]]:
        """(name, layer) of every layer, in the order of their calls."""
        return [(str(node.target), layer) for node, layer in layer_nodes(self.graph)]

    def __repr__(self) -> str:
        lines = [f"  ({name}): {layer!r}" for name, layer in self.layers()]
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])


def tensor_bytes(module: nn.Module) -> int:
    """What a module's parameters and buffers take, shared ones once."""
    tensors = {t.data_ptr(): t.nbytes for t in (*module.parameters(), *module.buffers()) if t.numel()}
    return sum(tensors.values())
