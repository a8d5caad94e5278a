"""Published accuracies of the methods, to be put beside ours where network and data are the paper's."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAPERS = Path(__file__).with_name("published.json")
_TEXT, _NUMBERS = ("network", "data", "method", "source"), ("sparsity", "accuracy")


@dataclass(frozen=True)
class Point:
    """accuracy and dense (the paper's own dense network, if given) are percent; rule: how its epoch was selected."""

    network: str
    data: str
    method: str
    sparsity: float
    accuracy: float
    source: str
    dense: float | None = None
    rule: str = ""


def read(path: Path = PAPERS) -> list[Point]:
    """The points of a JSON file, a list of objects with the fields of Point. ValueError names file, entry and field."""
    try:
        entries = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a list of points")
    return [_point(path, number, entry) for number, entry in enumerate(entries, 1)]


def _point(path: Path, number: int, entry: Any) -> Point:
    where = f"{path}, point {number}"
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {entry!r}, expected an object")
    unknown = [key for key in entry if key not in Point.__dataclass_fields__]
    if unknown:
        raise ValueError(f"{where}: unknown field {unknown[0]!r} (known: {', '.join(Point.__dataclass_fields__)})")
    for key in (*_TEXT, *_NUMBERS):
        if not isinstance(entry.get(key), str if key in _TEXT else int | float):
            raise ValueError(f"{where}: {key} is {entry.get(key)!r}")
    if not 0 < entry["sparsity"] < 1 or not 0 <= entry["accuracy"] <= 100:
        raise ValueError(f"{where}: sparsity is a share in (0, 1) and accuracy percent, got {entry}")
    return Point(**entry)


def beside(points: list[Point], shared: Mapping[str, Any]) -> list[Point]:
    """Those of the network (in its own width) and the data that a comparison (comparison.toml) is about."""
    network, data = shared["network"], shared["data"]
    other_size = network.get("width") or network.get("stride") or network.get("weights") or data.get("images")
    if other_size:
        return []
    return [point for point in points if (point.network, point.data) == (network["name"], data["name"])]
