"""SparseGates: weights of parallel branches that sum to one, and of which training makes some exactly zero."""

import math

import torch
from torch import Tensor, nn

from sparse_ops.ops.soft_threshold import Leaky, soft_threshold

LAST = 0.99  # the threshold stays below this share of the largest gate, so that one gate is always open


class SparseGates(nn.Module):
    """a_i = relu(p_i - t) / sum_j relu(p_j - t) with p = softmax(alpha) and t = sigmoid(beta), both trained.

    Multiply branch i of an architecture with gate i and add `strength * gates.penalty()` to the loss: gates that the
    task does not need become exactly 0, and `open()` says which branches are left. n: how many. leaky="elu": the
    backward pass goes through closed gates with the derivative of ELU, so that they may open again; "relu": not.
    initial_share: t at first, as a share of the gates' mean 1 / n (beta is about -log(10 n) for 0.1). All gates would
    be closed where t >= max p; t counts as 0.99 max p there. Differentiable sparsification, arXiv 1910.03201.
    """

    def __init__(self, n: int, *, leaky: Leaky = "elu", initial_share: float = 0.1) -> None:
        super().__init__()
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"SparseGates: n is {n!r}, expected an integer >= 1")
        if not isinstance(initial_share, int | float) or not 0 < initial_share < 1:
            raise ValueError(f"SparseGates: initial_share is {initial_share!r}, expected 0 < initial_share < 1")
        if leaky not in ("relu", "elu"):
            raise ValueError(f"SparseGates: leaky is {leaky!r}; it may be relu or elu")
        self.n, self.leaky = n, leaky
        share = initial_share / n
        self.alpha = nn.Parameter(torch.zeros(n))
        self.beta = nn.Parameter(torch.tensor(math.log(share) - math.log1p(-share)))

    def forward(self) -> Tensor:
        """(n,) gates >= 0 that sum to one."""
        p = torch.softmax(self.alpha, 0)
        t = torch.minimum(torch.sigmoid(self.beta), LAST * p.detach().max())
        rest = soft_threshold(p, t, leaky=self.leaky)
        return rest / rest.sum()

    def penalty(self, p: float = 0.5) -> Tensor:
        """The quasi-norm (sum a^p)^(1/p), 0 < p < 1: n^(1/p - 1) for equal gates, 1 for a single open one.

        Its gradient goes through open gates only: where a is 0 it would be infinite.
        """
        if not isinstance(p, int | float) or not 0 < p < 1:
            raise ValueError(
                f"SparseGates: p is {p!r}, expected 0 < p < 1: gates sum to one, so their l1 norm is constant"
            )
        a = self()
        return torch.where(a > 0, torch.where(a > 0, a, 1.0) ** p, 0.0).sum() ** (1 / p)

    @torch.no_grad()
    def open(self) -> list[int]:
        """The branches whose gate is not zero."""
        return torch.nonzero(self()).flatten().tolist()

    def extra_repr(self) -> str:
        return f"{self.n}, leaky={self.leaky!r}"
