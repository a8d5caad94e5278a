"""RunsSparse: methods whose masked layers may run sparse while they train, with the result of dense execution."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Unpack, get_args

import torch
from torch import nn

from sparse_ops.masks import PackedMask
from sparse_ops.methods.arguments import one_of
from sparse_ops.methods.budget import Sparsity
from sparse_ops.methods.options import Options
from sparse_ops.methods.report import Report
from sparse_ops.methods.updater import Sparsifier
from sparse_ops.nn.turns import Turns
from sparse_ops.optim.packed import packed_state

Execution = Literal["dense", "sparse"]


class SparseRunOptions(Options, total=False):
    """`Options`, and execution: "dense", or "sparse" for sparse layers while masks are in force."""

    execution: Execution


class RunsSparse(Sparsifier):
    """A Sparsifier with the argument execution, see `SparseRunOptions`.

    A method calls `_run_sparse` and `_run_dense` where its masks come into force and before it changes them. While
    layers run sparse, their `values` stand in the place of their weights in the model, in its state_dict and in the
    optimiser; `weights` are out of date there. `finalize` and `detach` leave a dense model.
    """

    defaults: ClassVar[SparseRunOptions] = {"execution": "dense", **Sparsifier.defaults}

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sparsity: Sparsity,
        course: list[tuple[str, int]],
        *,
        execution: Execution = "dense",
        **options: Unpack[Options],
    ) -> None:
        one_of(self._title, "execution", execution, get_args(Execution))
        self.execution = execution
        self._sparse_masks: dict[str, PackedMask] = {}  # of the layers that run sparse now
        super().__init__(model, optimizer, sparsity, course, **options)
        self._turns = Turns(model, optimizer, self.weights)

    @property
    def masks(self) -> dict[str, PackedMask]:
        """Name -> mask in force; empty while the network is dense."""
        held = super().masks | self._sparse_masks
        return {name: held[name] for name in self.weights if name in held} if self._sparse_masks else held

    def report(self) -> Report:
        """The course of the epochs, from 1, and the sparsity of each layer; print it, or call to_dict()."""
        self._turns.write_back()
        report = super().report()
        return replace(report, settings=report.settings | {"execution": self.execution})

    def detach(self) -> None:
        """Take the hooks off without pruning: training goes on, dense, as if there had been no sparsifier."""
        self._run_dense()
        super().detach()

    def state_dict(self) -> dict[str, Any]:
        """Everything to continue bit for bit, beside the states of model and optimiser; plain data and tensors."""
        masks = {name: packed_state(mask) for name, mask in self.masks.items()}
        return super().state_dict() | {"masks": masks, "runs_sparse": bool(self._sparse_masks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; with execution="sparse" to be loaded before model and optimiser.

        The layers take the form that they had then. ValueError as for any method, and for a checkpoint with sparse
        layers where execution is "dense".
        """
        runs_sparse = bool(state.get("runs_sparse"))
        if runs_sparse and self.execution == "dense":
            raise ValueError(f"{self._title}: the checkpoint's layers run sparse, but execution is 'dense'")
        before = bool(self._sparse_masks)
        self._run_dense()
        try:
            super().load_state_dict(state)
        except Exception:
            runs_sparse = before
            raise
        finally:
            if runs_sparse:
                self._run_sparse()

    def _write_zeros(self) -> None:
        self._run_dense()
        super()._write_zeros()

    def _run_sparse(self) -> None:
        """With execution="sparse": layers with masks become sparse where they can."""
        if self.execution == "dense" or self._sparse_masks:
            return
        masks = {name: mask for name, mask in self.masks.items() if mask.zeros}
        values = self._turns.to_sparse(masks)
        rest = {name: mask for name, mask in self.masks.items() if name not in values}
        self.sweep.rebind(values, rest)
        self._sparse_masks = {name: masks[name] for name in values}

    def _run_dense(self) -> None:
        """All layers are dense, with their masks in force."""
        if not self._sparse_masks:
            return
        masks = self.masks
        weights = self._turns.to_dense()
        self._sparse_masks = {}
        self.sweep.rebind(weights, masks)
