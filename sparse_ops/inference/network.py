"""InferenceNetwork: a fused graph with its forms and layouts, called like the model that it was made from."""

import copy
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparse_ops.inference import capture
from sparse_ops.inference.fuse import layer_nodes
from sparse_ops.inference.given import Given
from sparse_ops.inference.layers import Fused
from sparse_ops.inference.program import Program
from sparse_ops.inference.signature import Signature
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
                *([*lines, ""] if self.layers else []),
                f"{self.dtype}, batch {self.batch}, {where}: {times}; runs as {self.chosen}",
                f"tensors take {self.bytes:,} bytes, {self.dense_bytes:,} dense; "
                f"largest difference from the model, relative to its largest output: {self.error:.1e}",
            ]
        )


class InferenceNetwork(nn.Module):
    """What `optimize_for_inference` returns. Called like the model, with the example's arguments; no gradients.

    Arguments go by position or by name. Floating tensors may have any floating dtype: they are converted to the
    example's, autocast has no effect inside, and the result has the model's dtype. A first dimension other than the
    example's is accepted where `free_batch` says so. Another shape or another value of what is no tensor was not
    measured or is part of the graph, and is refused with a ValueError that names the argument.
    """

    def __init__(self, graph: fx.GraphModule | Given, signature: Signature, report: Any) -> None:
        super().__init__()
        self.graph = graph
        self.signature = signature
        self._report = report
        self._recycler = Recycler()
        self._program = graph.run if isinstance(graph, Given) else Program(graph)
        self.training = False

    @property
    def free_batch(self) -> bool:
        """Whether the first dimension of the tensors may differ from the example's."""
        return self.signature.least_batch is not None

    def report(self) -> InferenceReport:
        """Choices, times and bytes; print it."""
        return self._report

    def train(self, mode: bool = True) -> "InferenceNetwork":
        """Refuses True: norms are folded into weights. A parent that goes into training mode leaves it as it is."""
        if mode and sys._getframe(1).f_code is not nn.Module.train.__code__:
            raise ValueError("this network is for inference: norms are folded into its weights; train the model itself")
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "InferenceNetwork":
        """Refuses another dtype, as of `.to(dtype)`: constants of the graph and its times are those of the present one.

        Norms that are float32 in a network of bfloat16 stay so.
        """
        own = getattr(torch, self._report.dtype)
        wanted = fn(torch.empty(0, dtype=own)).dtype
        if wanted != own:
            raise ValueError(
                f"this network computes in {self._report.dtype} and cannot be converted to {wanted}: "
                "sparse_ops.optimize_for_inference(model, example, dtype=...) makes one of float32 or bfloat16"
            )

        def keeping(t: Tensor) -> Tensor:
            moved = fn(t)
            return moved if moved.dtype == t.dtype else t.to(moved.device)

        super()._apply(keeping, recurse)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's, in evaluation mode."""
        if torch.compiler.is_exporting() and _is_traced((args, kwargs)):  # the flag is that of all threads
            raise TypeError(
                "torch.export of a network for inference: sparse_ops.export(network, example, path) does it"
            )
        leaves = self.signature.as_made(args, kwargs)
        if leaves is None:
            args, kwargs = self.signature.bind(args, kwargs)
        if not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")):
            return self._recycler.run(self._program, args, kwargs, leaves)
        with torch.no_grad(), without_autocast():
            return self._recycler.run(self._program, args, kwargs, leaves)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a network for inference is not pickled (torch.save, pickle): sparse_ops.export(network, example, path) "
            "writes it, sparse_ops.load_exported(path) reads it"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "InferenceNetwork":
        with capture.quiet():
            return InferenceNetwork(copy.deepcopy(self.graph, memo), self.signature, self._report)

    def layers(self) -> list[tuple[str, Fused]]:
        """(name, layer) of every layer, in the order of their calls."""
        return [(str(node.target), layer) for node, layer in self.nodes()]

    def nodes(self) -> list[tuple[fx.Node, Fused]]:
        """The same with their places in the graph; none of a model as it was given."""
        return [] if isinstance(self.graph, Given) else layer_nodes(self.graph)

    def __repr__(self) -> str:
        parts: list[tuple[str, nn.Module]] = [*self.layers()] or [("given", self.graph)]
        lines = [textwrap.indent(f"({name}): {part!r}", "  ") for name, part in parts]
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])


def _is_traced(arguments: Any) -> bool:
    """Whether there are fake tensors among the arguments, of an export that is going on in this thread."""
    return any(isinstance(leaf, Tensor) and type(leaf) is not Tensor for leaf in pytree.tree_leaves(arguments))


def tensor_bytes(module: nn.Module) -> int:
    """What a module's parameters and buffers take, shared ones once."""
    tensors = {t.data_ptr(): t.nbytes for t in (*module.parameters(), *module.buffers()) if t.numel()}
    return sum(tensors.values())


@contextmanager
def without_autocast() -> Iterator[None]:
    """Dtypes as the graph has them, whatever the caller's autocast says."""
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
