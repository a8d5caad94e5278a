"""What a method did: the course of its epochs and the sparsity of each layer, as text and as a dict."""

from dataclasses import dataclass
from typing import Any

from sparse_ops.planning import SparsityReport, table


@dataclass(frozen=True)
class Report:
    """str() is for people, to_dict() for machines."""

    method: str
    settings: dict[str, Any]
    history: list[dict[str, Any]]
    sparsity: SparsityReport

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only."""
        return {
            "method": self.method,
            "settings": self.settings,
            "history": self.history,
            "sparsity": self.sparsity.to_dict(),
        }

    def __str__(self) -> str:
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        columns = list(dict.fromkeys(key for row in self.history for key in row if row[key] is not None))
        rows = [[_cell(row.get(column)) for column in columns] for row in self.history]
        course = table(columns, rows) if rows else "no epoch has ended yet"
        return f"{self.method}: {settings}\n\n{course}\n\n{self.sparsity}"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
