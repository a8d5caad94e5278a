"""Options: the arguments that methods take beside their own, written once; constructors hand them on as they come."""

import difflib
import inspect
from typing import Any, ClassVar, Literal, Self, TypedDict, Unpack, get_args, get_origin

from sparse_ops.masks import Count, Scope
from sparse_ops.prunable import Filters


class SharedOptions(TypedDict, total=False):
    """The arguments of every method beside its own.

    prunable, exclude: which weights, see `sparse_ops.prunable.select`. lr: "method" sets the initial learning rate
    times `lr_factor` where a phase begins or the factor changes, "user" never touches it. strict: an error where a
    layer or an output would lose its last weight, instead of a warning. check: verify each step exactly (slow, for
    debugging).
    """

    prunable: Filters
    exclude: Filters
    lr: Literal["method", "user"]
    strict: bool
    check: bool


class Options(SharedOptions, total=False):
    """The arguments beside its own of every method that ranks weights: `SharedOptions`, and how the zeros are shared.

    scope: "global", "uniform" or "erk"; count: "nearest", "floor", "ceil" or "art", how sparsity * weights is rounded;
    min_nonzeros: weights that each layer keeps.
    """

    scope: Scope
    count: Count
    min_nonzeros: int


class TakesOptions:
    """A class whose constructor takes `**options: Unpack[...]` and shows and checks them as if each were written out.

    `defaults` are the options of a class in the order in which its signature shows them; a subclass may have others.
    """

    defaults: ClassVar[Options] = {
        "prunable": None,
        "exclude": None,
        "scope": "global",
        "count": "nearest",
        "min_nonzeros": 0,
        "lr": "method",
        "strict": False,
        "check": False,
    }
    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.__signature__ = _written_out(cls)

    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        """TypeError for an argument that the class does not know, before anything else is said about the others."""
        parameters = cls.__signature__.parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            refuse_unknown(cls.__name__, keywords, [p.name for p in parameters])
        return super().__new__(cls)


def refuse_unknown(title: str, given: Any, known: list[str]) -> None:
    """TypeError for the first given name that is not a known one, with the nearest of these."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise TypeError(f"{title}: unexpected keyword argument {name!r}; {hint}")


def _written_out(cls: type[TakesOptions]) -> inspect.Signature:
    """The constructor's signature with an argument for each of the options that `**options` stands for."""
    _, *own = inspect.signature(cls.__init__).parameters.values()
    if not own or get_origin(own[-1].annotation) is not Unpack:
        return inspect.Signature(own)
    *named, unpacked = own
    kinds = get_args(unpacked.annotation)[0].__annotations__
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=kinds[name])
        for name, value in cls.defaults.items()
        if name in kinds
    ]
    return inspect.Signature([*named, *options])
