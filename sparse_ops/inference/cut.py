"""The cheapest choice of one of two states for every node of a graph, by a minimum cut."""

from collections import deque
from collections.abc import Iterable, Mapping


def cheapest(costs: Mapping[str, tuple[float, float]], edges: Iterable[tuple[str, str, float]]) -> dict[str, int]:
    """The state, 0 or 1, of each node that makes the sum least, exactly.

    costs: what each node costs in state 0 and in state 1, infinite where it cannot be in it. edges: (node, node, cost
    if their states differ). No cost is negative.
    """
    flow: dict[str, dict[str, float]] = {}

    def arc(a: str, b: str, capacity: float, back: float) -> None:
        for u, v, c in ((a, b, capacity), (b, a, back)):
            flow.setdefault(u, {})[v] = flow.get(u, {}).get(v, 0.0) + c

    source, sink = object(), object()
    for node, (zero, one) in costs.items():
        arc(source, node, one, 0.0)  # type: ignore[arg-type]
        arc(node, sink, zero, 0.0)  # type: ignore[arg-type]
    for a, b, cost in edges:
        arc(a, b, cost, cost)
    while True:  # augment along a shortest path until there is none: what the source still reaches has state 0
        parent = {source: source}
        queue = deque([source])
        while queue and sink not in parent:
            u = queue.popleft()
            for v, left in flow.get(u, {}).items():  # type: ignore[call-overload]
                if left > 1e-12 and v not in parent:
                    parent[v] = u
                    queue.append(v)
        if sink not in parent:
            return {node: 0 if node in parent else 1 for node in costs}
        path, v = [], sink
        while v is not source:
            path.append((parent[v], v))
            v = parent[v]
        least = min(flow[u][v] for u, v in path)  # type: ignore[index]
        for u, v in path:
            flow[u][v] -= least  # type: ignore[index]
            flow[v][u] += least  # type: ignore[index]
