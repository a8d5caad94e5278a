"""Checks of a method's arguments: errors that name the method, the argument and its value."""

import math
from collections.abc import Collection
from typing import Any


def epochs(method: str, **lengths: int) -> None:
    """ValueError or TypeError naming the first length that is not an integer >= 0."""
    for name, value in lengths.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{method}: {name} is {value!r}, expected an integer >= 0")
        if value < 0:
            raise ValueError(f"{method}: {name} is {value}, expected an integer >= 0")


def positive(method: str, **numbers: float) -> None:
    """ValueError naming the first that is not a finite number above 0."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{method}: {name} is {value!r}, expected a finite number > 0")


def flags(method: str, **values: bool) -> None:
    """TypeError naming the first that is neither True nor False."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise TypeError(f"{method}: {name} is {value!r}, expected True or False")


def shares(method: str, **numbers: float) -> None:
    """ValueError or TypeError naming the first that is not a number in [0, 1]."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{method}: {name} is {value!r}, expected a number in [0, 1]")
        if not 0 <= value <= 1:
            raise ValueError(f"{method}: {name} is {value}, expected a number in [0, 1]")


def one_of(method: str, name: str, value: Any, known: Collection[Any]) -> None:
    """ValueError naming the argument, and all of the known values where its own is none of them."""
    if value not in known:
        raise ValueError(f"{method}: {name} is {value!r}; it may be one of {', '.join(map(str, known))}")


def either(method: str, name: str, value: Any, known: tuple[Any, Any]) -> None:
    """The same for one of two values."""
    if value not in known:
        raise ValueError(f"{method}: {name} is {value!r}; it may be {known[0]!r} or {known[1]!r}")


def fraction(name: str, value: Any) -> float:
    """The value as a float in [0, 1]; TypeError for what is no number, ValueError outside, both naming it."""
    try:
        number = float("" if isinstance(value, str | bytes) else value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} is {value!r}, expected a number in [0, 1]") from None
    if not 0 <= number <= 1:
        hint = " (a percentage? divide by 100)" if 1 < number <= 100 else ""
        raise ValueError(f"{name} is {number}, expected an accuracy in [0, 1]{hint}")
    return number
