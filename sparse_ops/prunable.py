"""Which weights a budget covers: by default exactly the weights of nn.Linear, nn.Conv1d, nn.Conv2d and nn.Conv3d."""

import difflib
import fnmatch
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

Filter = Callable[[str, nn.Module], bool] | type[nn.Module] | str
Filters = Filter | Iterable[Filter] | None
Owner = tuple[str, nn.Module, str]  # (the parameter's cleaned name, the module that holds it, its name there)

_registered: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight",),
    nn.Conv1d: ("weight",),
    nn.Conv2d: ("weight",),
    nn.Conv3d: ("weight",),
}
_TORCH_PRUNED = (
    "pruned by torch.nn.utils.prune, which computes the weight anew in each forward; make that permanent with "
    "torch.nn.utils.prune.remove(module, 'weight'), or leave the module out with exclude="
)


@dataclass(frozen=True)
class Prunable:
    """A weight that a budget covers, under its cleaned name."""

    name: str
    parameter: nn.Parameter
    module: nn.Module

    @property
    def kind(self) -> str:
        """The module's type, as nn.Linear is written."""
        return type_name(self.module)


@dataclass(frozen=True)
class Selection:
    """The prunable weights of a model in its own order, and why each other parameter is not one of them."""

    weights: tuple[Prunable, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Name -> parameter."""
        return {w.name: w.parameter for w in self.weights}

    @property
    def numel(self) -> int:
        """How many weights the budget covers."""
        return sum(w.parameter.numel() for w in self.weights)


def register(module_type: type[nn.Module], *parameters: str) -> None:
    """Make parameters (default: "weight") of a module type and its subclasses prunable by default from now on."""
    if not (isinstance(module_type, type) and issubclass(module_type, nn.Module)):
        raise TypeError(f"register: module_type is {module_type!r}, expected a subclass of torch.nn.Module")
    _registered[module_type] = parameters or ("weight",)


def is_registered(module: nn.Module) -> bool:
    """True for the default types, their subclasses, and what `register` has added."""
    return isinstance(module, tuple(_registered))


def type_name(module: nn.Module) -> str:
    """nn.Linear for torch's own types, the bare class name for others."""
    cls = type(module)
    return f"nn.{cls.__name__}" if cls.__module__.startswith("torch.nn.") else cls.__name__


def clean(name: str) -> str:
    """A parameter's name without what DataParallel, DistributedDataParallel and torch.compile put in front."""
    name = name.replace("_orig_mod.", "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def plain(name: str) -> str:
    """`0.weight` for `0.parametrizations.weight.original`, the same for any other name."""
    head, found, tail = name.rpartition("parametrizations.")
    return head + tail.removesuffix(".original") if found and tail.endswith(".original") else name


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter once, under its cleaned name (the full name where two would become equal)."""
    rename = _namer(model)
    return {rename(name): parameter for name, parameter in model.named_parameters()}


def named_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every buffer once, under its cleaned name."""
    rename = _namer(model)
    return {rename(name): buffer for name, buffer in model.named_buffers()}


def _namer(model: nn.Module) -> Callable[[str], str]:
    """`clean`, or no change for a model in which cleaning would make two names equal."""
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    return clean if len({clean(name) for name in names}) == len(names) else str


def select(model: nn.Module, prunable: Filters = None, exclude: Filters = None) -> Selection:
    """The weights of `model` that a budget covers.

    prunable: a predicate (module name, module) -> bool, module types, name patterns (`*`, `?` and `[]` as in file
    names, matched against parameter and module names) or a list of these; None: the registered types. exclude: the
    same forms, taken away again. A weight is counted once however often it is tied, and not at all when it is tied to
    a module that is not prunable (an Embedding). ValueError when nothing is left, or a pattern matches nothing.
    """
    wanted, unwanted = _as_list("prunable", prunable), _as_list("exclude", exclude)
    if prunable is not None and not wanted:
        raise ValueError("prunable= is an empty list, which chooses no weight; None chooses all that are prunable")
    owners: dict[int, list[Owner]] = {}
    parameters: dict[int, nn.Parameter] = {}
    for owner, parameter in _owned(model):
        owners.setdefault(id(parameter), []).append(owner)
        parameters[id(parameter)] = parameter
    everywhere = [owner for found in owners.values() for owner in found]
    _check_patterns(model, "prunable", wanted, everywhere)
    _check_patterns(model, "exclude", unwanted, everywhere)

    weights, skipped = [], {}
    for key, found in owners.items():
        name, module, _ = found[0]
        reason = _why_not(parameters[key], found, wanted if prunable is not None else None, unwanted)
        if reason is not None and reason == _TORCH_PRUNED and not _excluded(found, unwanted):
            raise ValueError(f"{name}: {reason}")
        if reason is None:
            weights.append(Prunable(name, parameters[key], module))
        else:
            skipped[name] = reason
    selection = Selection(tuple(weights), skipped)
    if not weights:
        reasons = sorted({f"{name}: {reason}" for name, reason in skipped.items()})
        listed = "; ".join(reasons[:8]) + (f"; and {len(reasons) - 8} more" if len(reasons) > 8 else "")
        raise ValueError(f"{type(model).__name__} has no prunable weights ({listed or 'it has no parameters'})")
    _refuse_shared_storage(selection)
    return selection


def matching(model: nn.Module, argument: str, filters: Filters) -> list[nn.Parameter]:
    """The parameters that filters of the forms of `select` cover; `argument` names them in an error."""
    listed, owned = _as_list(argument, filters), list(_owned(model))
    _check_patterns(model, argument, listed, [owner for owner, _ in owned])
    return [parameter for owner, parameter in owned if any(_matches(filter_, owner) for filter_ in listed)]


def _owned(model: nn.Module) -> Iterator[tuple[Owner, nn.Parameter]]:
    """Every parameter with each module that holds it: a tied one several times."""
    rename = _namer(model)
    for path, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            yield (rename(f"{path}.{leaf}" if path else leaf), module, leaf), parameter


def _why_not(
    parameter: nn.Parameter,
    owners: list[Owner],
    wanted: list[Filter] | None,
    unwanted: list[Filter],
) -> str | None:
    """Why a parameter with these owners (one or several when tied) is not prunable; None when it is."""
    chosen = [_chosen(owner, wanted) for owner in owners]
    if not any(chosen):
        name, module, leaf = owners[0]
        if leaf == "weight_orig" and "weight_mask" in module._buffers:
            return _TORCH_PRUNED
        if isinstance(module, nn.utils.parametrize.ParametrizationList):
            return "it is parametrized: remove the parametrization first"
        if leaf == "values" and hasattr(module, "row_offsets"):
            return f"{type_name(module)} is sparse already"
        return "not chosen by prunable=" if wanted is not None else f"{leaf} of {type_name(module)} is not prunable"
    if _excluded(owners, unwanted):
        return "excluded by exclude="
    for (name, module, _), yes in zip(owners, chosen, strict=True):
        if not yes:
            return f"tied to {name} of {type_name(module)}, which is not prunable"
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        return "it has no shape yet: run one batch through the model first"
    if not parameter.dtype.is_floating_point or parameter.itemsize < 2:
        return f"it is {parameter.dtype}, not float16, bfloat16, float32 or float64"
    if parameter.numel() == 0:
        return f"it is empty, {tuple(parameter.shape)}"
    if not parameter.requires_grad:
        return "it is frozen (requires_grad is False)"
    return None


def _excluded(owners: list[Owner], unwanted: list[Filter]) -> bool:
    return any(_matches(filter_, owner) for filter_ in unwanted for owner in owners)


def _chosen(owner: Owner, wanted: list[Filter] | None) -> bool:
    if wanted is not None:
        return any(_matches(filter_, owner) for filter_ in wanted)
    return any(isinstance(owner[1], cls) and owner[2] in leaves for cls, leaves in _registered.items())


def _matches(filter_: Filter, owner: Owner) -> bool:
    """True where a filter covers an owner; a type, predicate or module name covers the module's prunable leaves."""
    name, module, leaf = owner
    path = name[: -len(leaf) - 1]
    if isinstance(filter_, str) and fnmatch.fnmatchcase(name, filter_):
        return True
    leaves = next((leaves for cls, leaves in _registered.items() if isinstance(module, cls)), ("weight",))
    leaves += ("weight_orig",)
    if leaf not in leaves:
        return False
    if isinstance(filter_, str):
        return fnmatch.fnmatchcase(path, filter_)
    if isinstance(filter_, type):
        return isinstance(module, filter_)
    return bool(filter_(path, module))


def _as_list(argument: str, filters: Filters) -> list[Filter]:
    if filters is None:
        return []
    single = isinstance(filters, str | type) or (callable(filters) and not isinstance(filters, Iterable))
    if not single and not isinstance(filters, Iterable):
        raise TypeError(
            f"{argument}= is {filters!r}; expected a predicate (name, module), a module type, a name pattern or a list"
        )
    listed: list[Filter] = [filters] if single else list(filters)  # type: ignore[arg-type, list-item]
    for filter_ in listed:
        if not (isinstance(filter_, str) or callable(filter_)):
            raise TypeError(
                f"{argument}= holds {filter_!r}; expected a predicate (name, module), a module type or a name pattern"
            )
    return listed


def _check_patterns(model: nn.Module, argument: str, filters: Sequence[Filter], owners: list[Owner]) -> None:
    for pattern in (f for f in filters if isinstance(f, str)):
        if not any(_matches(pattern, owner) for owner in owners):
            names = [name for name, _, _ in owners] + [name[: -len(leaf) - 1] for name, _, leaf in owners]
            near = difflib.get_close_matches(pattern, names, n=1)
            hint = f"; the nearest name is {near[0]!r}" if near else ""
            raise ValueError(f"{argument}={pattern!r} matches nothing in {type(model).__name__}{hint}")


def _refuse_shared_storage(selection: Selection) -> None:
    """Two different parameters over the same memory cannot both be pruned: a mask of one would change the other."""
    ranges = []
    for w in selection.weights:
        if w.parameter.device.type != "meta":
            start = w.parameter.data_ptr()
            ranges.append((w.parameter.device.index or 0, start, start + w.parameter.nbytes, w.name))
    ranges.sort()
    for (device, _, end, name), (other_device, start, _, other) in itertools.pairwise(ranges):
        if device == other_device and start < end:
            raise ValueError(f"{name} and {other} are different parameters over the same memory; exclude one of them")
