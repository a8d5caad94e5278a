"""How much: the sparsity that a method is asked for, as masks, and as what its sweep tracks."""

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from sparse_ops import masks
from sparse_ops.masks import Count, PackedMask, Scope

Sparsity = float | Mapping[str, float]


@dataclass(frozen=True)
class Budget:
    """Validated; sparsity is one number, or a mapping from name patterns to numbers, the first match counting."""

    sparsity: Sparsity
    scope: Scope = "global"
    count: Count = "nearest"
    min_nonzeros: int = 0

    def __post_init__(self) -> None:
        values = self.sparsity.items() if isinstance(self.sparsity, Mapping) else [("", self.sparsity)]
        for pattern, value in values:
            where = f"sparsity[{pattern!r}]" if pattern else "sparsity"
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{where} is {value!r}, expected a number in [0, 1)")
            if not 0 <= value < 1:
                raise ValueError(f"{where} is {value}, expected 0 <= sparsity < 1{masks.percentage(value)}")
        for argument, chosen, known in (("scope", self.scope, get_args(Scope)), ("count", self.count, get_args(Count))):
            if chosen not in known:
                raise ValueError(f"{argument} is {chosen!r}; it may be one of {', '.join(known)}")
        if isinstance(self.min_nonzeros, bool) or not isinstance(self.min_nonzeros, int) or self.min_nonzeros < 0:
            raise ValueError(f"min_nonzeros is {self.min_nonzeros!r}, expected an integer >= 0")
        if isinstance(self.sparsity, Mapping) and self.scope != "global":
            raise ValueError(f"scope is {self.scope!r}, but sparsity gives one number per layer already")

    def per_layer(self, names: Sequence[str]) -> list[float] | None:
        """The sparsity of each named weight where the budget names layers, else None."""
        if not isinstance(self.sparsity, Mapping):
            return None
        found = []
        for name in names:
            layer = name.rsplit(".", 1)[0]
            hits = [p for p in self.sparsity if fnmatch.fnmatchcase(name, p) or fnmatch.fnmatchcase(layer, p)]
            if not hits:
                raise ValueError(f"sparsity gives no number for {name}; add one for it, or for '*' as the last entry")
            found.append(self.sparsity[hits[0]])
        for pattern in self.sparsity:
            if not any(
                fnmatch.fnmatchcase(n, pattern) or fnmatch.fnmatchcase(n.rsplit(".", 1)[0], pattern) for n in names
            ):
                raise ValueError(f"sparsity[{pattern!r}] matches none of the prunable weights: {', '.join(names)}")
        return found

    def check(self, weights: Mapping[str, Tensor]) -> None:
        """ValueError where sparsity does not fit these weights' names, or leaves fewer of them than min_nonzeros."""
        sizes, layers = [w.numel() for w in weights.values()], self.per_layer(list(weights))
        masks.check_min_nonzeros(self._zeros(sizes, layers), sizes, self.min_nonzeros)

    def masks(self, weights: Mapping[str, Tensor]) -> dict[str, PackedMask]:
        """The masks with the budget's zeros at the smallest magnitudes of these weights; {} for a budget of none."""
        layers = self.per_layer(list(weights))
        sparsity = self.sparsity if layers is None else layers
        assert not isinstance(sparsity, Mapping)
        if not any(layers if layers is not None else [sparsity]):
            return {}
        packed = masks.magnitude_mask(weights.values(), sparsity, self.scope, self.count, self.min_nonzeros)
        return dict(zip(weights, packed, strict=True))

    def zeros(self, weights: Mapping[str, Tensor]) -> int | None:
        """How many zeros the masks hold; None for count="art", where ties decide."""
        if self.count == "art":
            return None
        return self._zeros([w.numel() for w in weights.values()], self.per_layer(list(weights)))

    def _zeros(self, sizes: Sequence[int], layers: Sequence[float] | None) -> int:
        if layers is not None:
            return sum([masks.budget(n, s, self.count) for n, s in zip(sizes, layers, strict=True)])
        assert not isinstance(self.sparsity, Mapping)
        return masks.budget(sum(sizes), self.sparsity, self.count)

    def scopes(self, weights: Mapping[str, Tensor]) -> list[int]:
        """The sweep's row of each weight: one for all, or one for each."""
        single = self.scope == "global" and not isinstance(self.sparsity, Mapping)
        return [0] * len(weights) if single else list(range(len(weights)))

    def tracked(self, weights: Mapping[str, Tensor]) -> list[float]:
        """The sparsity of each of the sweep's rows."""
        layers = self.per_layer(list(weights))
        if layers is not None:
            return layers
        assert not isinstance(self.sparsity, Mapping)
        if self.scope == "global":
            return [self.sparsity]
        zeros = masks.layer_zeros(
            [w.shape for w in weights.values()], self.sparsity, self.scope, self.count, self.min_nonzeros
        )
        return [_share(z, w.numel()) for z, w in zip(zeros, weights.values(), strict=True)]


@dataclass(frozen=True)
class LayerRatios(Budget):
    """GReg's: each weight is a row of the sweep, and count="ceil" counts layer by layer, unless scope says otherwise.

    A layer of n weights then loses min(ceil(sparsity n), n - min_nonzeros), and keeps one in any case.
    """

    def _by_layer(self, sizes: Sequence[int], layers: Sequence[float] | None) -> list[int] | None:
        """The zeros of each layer where it counts on its own."""
        if self.count != "ceil" or (layers is None and self.scope != "uniform"):
            return None
        ratios = [float(self.sparsity)] * len(sizes) if layers is None else layers  # type: ignore[arg-type]
        kept = max(1, self.min_nonzeros)
        return [max(0, min(math.ceil(s * n), n - kept)) for n, s in zip(sizes, ratios, strict=True)]

    def masks(self, weights: Mapping[str, Tensor]) -> dict[str, PackedMask]:
        """The masks with the budget's zeros at the smallest magnitudes of these weights; {} for a budget of none."""
        zeros = self._by_layer([w.numel() for w in weights.values()], self.per_layer(list(weights)))
        if zeros is None:
            return super().masks(weights)
        if not any(zeros):
            return {}
        shares = [z / max(1, w.numel()) for z, w in zip(zeros, weights.values(), strict=True)]
        return dict(zip(weights, masks.magnitude_mask(weights.values(), shares), strict=True))

    def scopes(self, weights: Mapping[str, Tensor]) -> list[int]:
        """The sweep's row of each weight: its own."""
        return list(range(len(weights)))

    def tracked(self, weights: Mapping[str, Tensor]) -> list[float]:
        """The sparsity of each of the sweep's rows; under a global budget that of all."""
        found = super().tracked(weights)
        return found if len(found) == len(weights) else found * len(weights)

    def _zeros(self, sizes: Sequence[int], layers: Sequence[float] | None) -> int:
        zeros = self._by_layer(sizes, layers)
        return super()._zeros(sizes, layers) if zeros is None else sum(zeros)


def _share(zeros: int, n: int) -> float:
    """The smallest sparsity whose rank floor(kappa n) + 1 is zeros + 1."""
    kappa = zeros / n
    return kappa if math.floor(kappa * n) == zeros else math.nextafter(kappa, 1)
