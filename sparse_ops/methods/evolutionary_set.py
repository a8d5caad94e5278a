"""SET: sparse from the first step to the last; the smallest weights give way to others at random.

Mocanu et al.: Scalable training of artificial neural networks with adaptive sparse connectivity inspired by network
science, Nature Communications 9, 2018, arXiv 1707.04780.
"""

from torch import Tensor, nn

from sparse_ops.methods.rigl import RigL


class SET(RigL):
    """RigL with new weights at random positions and, unless `anneal` says otherwise, a constant drop fraction."""

    name = "set"
    own_anneal = "constant"

    def _growth(self, name: str, weight: nn.Parameter) -> Tensor:
        return self._chances(weight)
