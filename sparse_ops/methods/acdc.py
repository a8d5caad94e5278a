"""AC/DC: train compressed and decompressed in turns, so that a dense and a sparse network come out of one run.

Peste, Iofinova, Vladu, Alistarh: AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks,
NeurIPS 2021, arXiv 2106.12379.
"""

from typing import Any, Unpack

import torch
from torch import nn

from sparse_ops.methods.arguments import epochs
from sparse_ops.methods.budget import Sparsity
from sparse_ops.methods.execution import RunsSparse, SparseRunOptions
from sparse_ops.methods.schedules import alternating, rounded
from sparse_ops.optim.hooks import zero_momentum


class ACDC(RunsSparse):
    """Alternating Compressed/DeCompressed training.

    dense for `warmup_epochs`; then sparse for `compressed_epochs` and dense for `decompressed_epochs` in turns, the
    last of these turns sparse; dense for `last_dense_epochs`, sparse for `last_sparse_epochs`, `total_epochs` in all.
    Where the turns do not fill the epochs between exactly, their number is the nearest that does, and they share the
    epochs as evenly as whole epochs allow. A sparse phase begins with a pruning by magnitude and keeps that mask; in a
    dense phase the pruned weights come back at zero, and with `reset_momentum` momentum buffers are set to zero where
    it begins (an optimiser without them, as Adam, is cleared), never where a sparse one does. The learning rate follows
    half a cosine over the whole run.

    execution="sparse": layers run sparse in sparse phases, with the same result to rounding. The defaults are the
    authors' 100 epochs for ImageNet. The other arguments are those of `Options`.
    """

    name = "acdc"
    one_schedule = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sparsity: Sparsity,
        total_epochs: int = 100,
        *,
        warmup_epochs: int = 10,
        compressed_epochs: int = 5,
        decompressed_epochs: int = 5,
        last_dense_epochs: int = 10,
        last_sparse_epochs: int = 15,
        reset_momentum: bool = True,
        **options: Unpack[SparseRunOptions],
    ) -> None:
        lengths = {
            "warmup_epochs": warmup_epochs,
            "compressed_epochs": compressed_epochs,
            "decompressed_epochs": decompressed_epochs,
            "last_dense_epochs": last_dense_epochs,
            "last_sparse_epochs": last_sparse_epochs,
        }
        epochs("ACDC", total_epochs=total_epochs, **lengths)
        for name in ("compressed_epochs", "decompressed_epochs", "last_sparse_epochs"):
            if lengths[name] == 0:
                raise ValueError(f"ACDC: {name} is 0, expected 1 or more")
        between = total_epochs - warmup_epochs - last_dense_epochs - last_sparse_epochs
        if between < 0:
            raise ValueError(
                f"ACDC: total_epochs is {total_epochs}, less than the {warmup_epochs} + {last_dense_epochs} + "
                f"{last_sparse_epochs} of warmup_epochs, last_dense_epochs and last_sparse_epochs"
            )
        if 0 < between < compressed_epochs:
            raise ValueError(
                f"ACDC: compressed_epochs is {compressed_epochs}, but the first and the last phases leave {between} of "
                f"{total_epochs} epochs"
            )
        turns = alternating(between, compressed_epochs, decompressed_epochs)
        course = [
            ("dense", warmup_epochs),
            *[(("sparse", "dense")[i % 2], length) for i, length in enumerate(turns)],
            ("dense", last_dense_epochs),
            ("sparse", last_sparse_epochs),
        ]
        self.reset_momentum = reset_momentum
        super().__init__(model, optimizer, sparsity, [(name, length) for name, length in course if length], **options)
        self._start()

    @classmethod
    def for_epochs(cls, epochs: int) -> dict[str, int]:
        """The authors' 100 epochs as shares: dense to .10, 13 turns of .05 to .75, dense to .85, sparse to the end.

        Rounded to whole epochs, none of them empty; where 13 turns do not fit there are fewer, or two more.
        """
        warmup, last_dense = (max(rounded(epochs, 10), int(epochs >= least)) for least in (2, 3))
        last_sparse = max(rounded(3 * epochs, 20), 1)
        between = epochs - warmup - last_dense - last_sparse
        compressed = max(rounded(between, 13), 1)
        return {
            "total_epochs": epochs,
            "warmup_epochs": warmup,
            "compressed_epochs": compressed,
            "decompressed_epochs": max(rounded(between - 7 * compressed, 6), 1),
            "last_dense_epochs": last_dense,
            "last_sparse_epochs": last_sparse,
        }

    def _settings(self) -> dict[str, Any]:
        course = ", ".join(f"{name} {length}" for name, length in self.course)
        return {"course": course, "reset_momentum": self.reset_momentum}

    def _enter(self, phase: str) -> None:
        self._run_dense()
        if phase == "sparse":
            self._prune(self.budget.masks(self.weights), reset=False)
            self._run_sparse()
        elif self.masks:
            self.sweep.set_masks({})
            if self.reset_momentum:
                zero_momentum(self.optimizer)
