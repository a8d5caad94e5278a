"""Keys and values of a recipe: what an error says about them in a reader's words, and how TOML writes them."""

import difflib
import json
from collections.abc import Sequence
from typing import Any

_WORDS: dict[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text in quotes",
    dict: "a table",
    list: "a list",
}


def unknown(key: str, known: Sequence[str]) -> ValueError:
    """The error for a key that nothing reads."""
    near = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return ValueError(f"unknown key {key!r}; {hint}")


def typed(key: str, value: Any, kind: type) -> Any:
    """The value as this kind (an integer is a number too); TypeError naming key, value and what was expected."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{key} is {value!r}, expected {_WORDS[kind]}")
    return value


def toml(value: Any) -> str:
    """The value as TOML writes it."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)  # TOML's inf and nan are Python's
    return json.dumps(value)
