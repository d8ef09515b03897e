"""What methods cost beside one pass of the teacher, and which of them pay: the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping

Budgets = dict[str, dict[str, float]]  # method -> `AXES` -> cost, the unit's is 1
AXES = {  # and what they are called
    "passes": "cost in teacher passes (multiply-adds over the teacher's)",
    "time": "time over the teacher's",
}


def budgets(gmacs: Mapping[str, float], ms: Mapping[str, float], unit: str) -> Budgets:
    """Costs of methods over that of the `unit`, the teacher: its multiply-adds are a pass.

    NaN where they are not counted: such a method has its time alone.
    """
    return {
        method: {"passes": gmacs[method] / gmacs[unit], "time": ms[method] / ms[unit]}
        for method in gmacs
    }


def fronts(costs: Budgets, gains: Mapping[str, float]) -> dict[str, list[str]]:
    """`pareto_front` on each of the `AXES`."""
    return {
        axis: pareto_front({method: x[axis] for method, x in costs.items()}, gains) for axis in AXES
    }


def pareto_front(costs: Mapping[str, float], gains: Mapping[str, float]) -> list[str]:
    """The methods that no other beats: none is at least as good for at most the same cost. The
    cheapest first; of equal ones all; those with an undefined cost or gain are left out.

    >>> pareto_front({"a": 1, "b": 2, "c": 3, "d": 3}, {"a": 0, "b": 5, "c": 4, "d": 6})
    ['a', 'b', 'd']
    """
    points = {m: (x, gains[m]) for m, x in costs.items() if x == x and gains[m] == gains[m]}

    def is_beaten(x: float, y: float) -> bool:
        return any(a <= x and b >= y and (a, b) != (x, y) for a, b in points.values())

    kept = [m for m, point in points.items() if not is_beaten(*point)]
    return sorted(kept, key=lambda m: points[m])
