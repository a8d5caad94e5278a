"""[method] of a recipe: checked against the method's constructor, its defaults written out, errors under its keys."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

from sparse_ops import methods
from sparse_ops.train import keys
from sparse_ops.train.schedule import scaled_lengths

_NOT_IN_A_RECIPE = ("model", "optimizer", "total_steps", "variant")  # follow from the rest of the recipe
SHARED = ("sparsity", "prunable", "exclude")  # what a comparison gives every method alike
GROWTHS = {"art": ("eta",)}  # method -> arguments that multiply something in each epoch
_REQUIRED = inspect.Parameter.empty


def resolve(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table with every default of the constructor, so that it means the same when a default changes.

    An argument whose default is None, which TOML cannot write, stays away where it is not given (`not_given`).
    ValueError or TypeError naming the key for an unknown method or key, a missing sparsity, a value of another type.
    """
    if "name" not in table:
        raise ValueError('method.name is missing; for example method.name = "art"')
    name = keys.typed("method.name", table["name"], str)
    defaults = _defaults(name)
    for key in table:
        if key not in ("name", *defaults):
            raise keys.unknown(f"method.{key}", [f"method.{k}" for k in defaults])
    if "sparsity" not in table:
        raise ValueError("method.sparsity is missing; for example method.sparsity = 0.98")
    resolved: dict[str, Any] = {"name": name}
    for key, default in defaults.items():
        if key in table:
            resolved[key] = _typed(f"method.{key}", table[key], default)
        elif default is not None:
            resolved[key] = default
    return resolved


def check_renamed(old: Any, table: Mapping[str, Any]) -> None:
    """ValueError where the table's name was `old` and its other keys are still arguments of that method alone."""
    new = table.get("name")
    if new == old or old not in methods.names() or new not in methods.names():
        return
    foreign = [key for key in table if key not in ("name", *_defaults(new)) and key in _defaults(old)]
    if foreign:
        raise ValueError(
            f"method.name is {new!r}, but the other keys of [method] belong to {old}: {new} does not take "
            f"{', '.join(foreign)}; begin with a recipe of {new}"
        )


def check_compared(name: str, table: Any) -> None:
    """ValueError or TypeError for a table [compare.NAME] that is not one of arguments of that method's own."""
    keys.typed(f"compare.{name}", table, dict)
    try:
        defaults = _defaults(name)
    except ValueError as error:
        raise ValueError(f"compare.{name}: {error}") from None
    for key, value in table.items():
        if key in SHARED:
            raise ValueError(f"compare.{name}.{key}: {key} is the same for every method of a comparison")
        if key not in defaults:
            raise keys.unknown(f"compare.{name}.{key}", [f"compare.{name}.{k}" for k in defaults if k not in SHARED])
        _typed(f"compare.{name}.{key}", value, defaults[key])


def unused_rates(table: Mapping[str, Any], kind: str) -> list[str]:
    """The keys that are learning rates of the method's phases, where schedule.kind or `lr` leaves it none to set."""
    own = kind == "method" and table.get("lr") != "user"
    return [] if own else [key for key in table if key.endswith("_lr")]


def check_rates(prefix: str, table: Mapping[str, Any], kind: str) -> None:
    """ValueError for a learning rate that is given and would have no effect."""
    for key in unused_rates(table, kind):
        why = f"schedule.kind is {kind!r}, which sets the learning rate of the whole run"
        why = why if kind != "method" else f"{prefix}.lr is 'user', which leaves the learning rate alone"
        raise ValueError(f"{prefix}.{key} is {table[key]}, but {why}; leave {key} out")


def scaled(name: str, table: Mapping[str, Any], budget: float) -> dict[str, Any]:
    """A method's table with every length times budget, and what grows from epoch to epoch slowed by as much.

    ART's penalty grows times eta an epoch, and times eta^(1 / budget) here: the same curve over a longer phase.
    """
    result = scaled_lengths(dict(table), budget)
    for key in set(GROWTHS.get(name, ())) & result.keys():
        if result[key] > 0:  # the method itself refuses the others
            result[key] = result[key] ** (1 / budget)
    return result


def growths(name: str, budget: float) -> dict[str, Any]:
    """The defaults of what grows from epoch to epoch, for a run of so many times the usual length."""
    defaults = _defaults(name)
    return scaled(name, {key: defaults[key] for key in GROWTHS.get(name, ())}, budget)


def arguments(table: Mapping[str, Any]) -> dict[str, Any]:
    """What the constructor takes beside model and optimizer."""
    return {key: value for key, value in table.items() if key != "name"}


def not_given(table: Mapping[str, Any]) -> list[str]:
    """The arguments that keep a default of None."""
    return [key for key in _defaults(table["name"]) if key not in table]


def under_key(error: Exception, table: Mapping[str, Any]) -> Exception:
    """An error of the constructor with the recipe's key in the place of the argument's name."""
    text, known = str(error), "|".join(_defaults(table["name"]))
    found = re.match(rf"(?:\w+: )?({known})\b", text)
    return type(error)(f"method.{text[found.start(1) :]}" if found else f"[method]: {text}")


def _defaults(name: str) -> dict[str, Any]:
    parameters = inspect.signature(methods.get(name).cls).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in _NOT_IN_A_RECIPE}


def _typed(key: str, value: Any, default: Any) -> Any:
    if default is _REQUIRED:  # sparsity: a number or a table of them
        if not isinstance(value, Mapping):
            keys.typed(key, value, float)
        return value
    if default is None:  # prunable, exclude
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(pattern, str) for pattern in listed):
            raise TypeError(f"{key} is {value!r}, expected a name pattern in quotes, or a list of such")
        return value
    return keys.typed(key, value, type(default))
