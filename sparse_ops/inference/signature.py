"""What a network for inference is called with: the arguments of its example, and what of them a call may change."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Expected:
    """A tensor of the example."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"a {str(self.dtype).removeprefix('torch.')} tensor of shape {self.shape}"


@dataclass(frozen=True)
class Parameters:
    """The parameters of a model's forward: names of the positional ones, of *args, and the defaults that are plain."""

    order: tuple[str, ...] = ()
    rest: str = "argument"
    defaults: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, model: nn.Module) -> "Parameters":
        """Those of `model`; none where Python cannot tell."""
        try:
            found = inspect.signature(model.forward).parameters.values()
        except (TypeError, ValueError):
            return cls()
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        order = tuple(p.name for p in found if p.kind in positional)
        rest = next((p.name for p in found if p.kind is inspect.Parameter.VAR_POSITIONAL), "argument")
        plain = (bool, int, float, str, type(None))
        return cls(order, rest, {p.name: p.default for p in found if type(p.default) in plain})

    def name(self, i: int) -> str:
        """The name of positional argument i."""
        return self.order[i] if i < len(self.order) else f"{self.rest}[{i - len(self.order)}]"

    def sort(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments in the order of the parameters."""
        known = [name for name in self.order if name in kwargs]
        return {name: kwargs[name] for name in (*known, *(name for name in kwargs if name not in known))}


class Signature:
    """Arguments by their names: tensors keep shape (but for a free batch) and kind of dtype, all else keeps its value.

    least_batch: the smallest first dimension where that is free, None where it is the example's.
    """

    def __init__(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], parameters: Parameters, least_batch: int | None
    ) -> None:
        self.parameters, self.least_batch = parameters, least_batch
        self.positional = len(args)
        self.names = (*(parameters.name(i) for i in range(len(args))), *kwargs)
        self.expected: dict[str, tuple[list[Any], Any]] = {}
        for name, value in zip(self.names, (*args, *kwargs.values()), strict=True):
            leaves, spec = pytree.tree_flatten(value)
            self.expected[name] = (
                [Expected(tuple(v.shape), v.dtype) if isinstance(v, Tensor) else v for v in leaves],
                spec,
            )

        leaves = [leaves[0] for leaves, spec in self.expected.values() if spec.is_leaf()]
        plain = len(leaves) == len(self.names) and all(isinstance(leaf, Expected) for leaf in leaves)
        self._plain: list[Expected] | None = leaves if plain and leaves else None
        self._keywords = self.names[self.positional :]

    def as_made(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Any] | None:
        """The leaves of arguments that are plain tensors just like the example's: nothing is left to bind."""
        if self._plain is None or len(args) != self.positional or tuple(kwargs) != self._keywords:
            return None
        leaves = (*args, *kwargs.values()) if kwargs else args
        for x, own in zip(leaves, self._plain, strict=True):
            if type(x) is not Tensor or x.shape != own.shape or x.dtype != own.dtype or not _is_plain(x):
                return None
        return leaves

    def tensors(self) -> list[Expected]:
        """The tensors of the example, in order."""
        return [leaf for leaves, _ in self.expected.values() for leaf in leaves if isinstance(leaf, Expected)]

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of a call as the example has them, floating tensors in its dtypes.

        Raises TypeError or ValueError that names the argument and its value where the network was not made for them.
        """
        given = self._named(args, kwargs)
        batches: dict[str, int] = {}
        values = [self._value(name, given[name], batches) for name in self.names]
        if len(set(batches.values())) > 1:
            sizes = ", ".join(f"{name} {size}" for name, size in batches.items())
            raise ValueError(f"the arguments differ in their first dimension: {sizes}")
        return tuple(values[: self.positional]), dict(
            zip(self.names[self.positional :], values[self.positional :], strict=True)
        )

    def _named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        most = len(self.parameters.order)
        if len(args) > max(most, self.positional) and self.parameters.rest == Parameters.rest:
            raise TypeError(f"{len(args)} arguments are given, this network is called with {', '.join(self.names)}")
        given = {self.parameters.name(i): value for i, value in enumerate(args)}
        if twice := given.keys() & kwargs.keys():
            raise TypeError(f"argument {min(twice)} is given twice")
        given |= kwargs
        if given.keys() == self.expected.keys():
            return given
        defaults = self.parameters.defaults or {}
        for name, value in given.items():
            if name in self.expected or (name in defaults and _same(value, defaults[name])):
                continue
            made = f"{defaults[name]!r}" if name in defaults else "none"
            raise ValueError(f"argument {name} is {describe(value)}, this network was made with {made}")
        for name in self.names:
            if name not in given:
                if name not in defaults:
                    raise TypeError(f"argument {name} is missing; this network is called with {', '.join(self.names)}")
                given[name] = defaults[name]
        return given

    def _value(self, name: str, value: Any, batches: dict[str, int]) -> Any:
        expected, spec = self.expected[name]
        if type(value) is Tensor and len(expected) == 1 and isinstance(expected[0], Expected) and spec.is_leaf():
            return self._tensor(name, value, expected[0], batches)
        leaves, found = pytree.tree_flatten(value)
        if found != spec:
            what = f"{expected[0]}" if spec.is_leaf() else f"the example's structure, {len(expected)} values"
            raise TypeError(f"argument {name} is {describe(value)}, this network is for {what}")
        for i, (leaf, own) in enumerate(zip(leaves, expected, strict=True)):
            part = name if spec.is_leaf() else f"{name} (value {i} of it)"
            if isinstance(own, Expected):
                leaves[i] = self._tensor(part, leaf, own, batches)
            elif not _same(leaf, own):
                raise ValueError(
                    f"argument {part} is {describe(leaf)}, this network was made with {describe(own)}; "
                    "optimise once for each value"
                )
        return pytree.tree_unflatten(leaves, spec)

    def _tensor(self, name: str, x: Any, own: Expected, batches: dict[str, int]) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"argument {name} is {describe(x)}, this network is for {own}")
        if not _is_plain(x):
            what = "meta" if x.is_meta else "mkldnn" if x.is_mkldnn else str(x.layout).removeprefix("torch.")
            raise TypeError(
                f"argument {name} is a tensor of layout {what}, this network is for plain (strided) tensors"
            )
        shape, free = tuple(x.shape), self.least_batch is not None
        if len(shape) != len(own.shape) or (shape[1:] != own.shape[1:] if free else shape != own.shape):
            wanted: Any = ("any number", *own.shape[1:]) if free else own.shape
            raise ValueError(f"argument {name} is {shape}, this network is for {wanted}")
        if free:
            batches[name] = shape[0]
            if shape[0] < (self.least_batch or 0):
                way = "leave out the call" if shape[0] == 0 else "optimise once more for one"
                raise ValueError(
                    f"argument {name} is {shape}, this network is for a first dimension of {self.least_batch} or more; "
                    + way
                )
        if x.dtype == own.dtype:
            return x
        if x.dtype.is_floating_point and own.dtype.is_floating_point:
            return x.to(own.dtype)
        whole = not (x.dtype.is_complex or x.dtype.is_floating_point or torch.bool in (x.dtype, own.dtype))
        if whole and torch.promote_types(x.dtype, own.dtype) == own.dtype and not own.dtype.is_floating_point:
            return x.to(own.dtype)
        raise TypeError(f"argument {name} is {describe(x)}, this network is for {own}")


def _is_plain(x: Tensor) -> bool:
    return x.layout is torch.strided and not (x.is_mkldnn or x.is_meta)


def describe(value: Any) -> str:
    """A value in a few words: no array is printed."""
    if isinstance(value, Tensor):
        return str(Expected(tuple(value.shape), value.dtype))
    text = repr(value) if isinstance(value, (bool, int, float, complex, str, type(None))) else ""
    return text if 0 < len(text) <= 60 else f"of type {type(value).__name__}"


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    try:
        return type(a) is type(b) and bool(a == b)
    except Exception:  # what cannot be compared is not known to be the same
        return False
