"""What the charts of several pages are made of. Colours are those of the page, so that light and dark are two faces."""

from collections.abc import Sequence
from typing import Any


def band(name: str, ends: Sequence[tuple[Any, float, float]], *, opacity: float) -> list[dict[str, Any]]:
    """The area between two ends over a moment, as two series: the lower end, and on it the width, which is filled."""
    still: dict[str, Any] = {
        "type": "line",
        "stack": "band",
        "stackStrategy": "all",
        "symbol": "none",
        "silent": True,
        "emphasis": {"disabled": True},
        "lineStyle": {"width": 1, "color": "var(--accent)", "opacity": 0.5},
        "itemStyle": {"color": "var(--accent)"},
    }
    filled = {"areaStyle": {"color": "var(--accent)", "opacity": opacity}}
    lower = [[at, low] for at, low, _ in ends]
    width = [[at, high - low] for at, low, high in ends]
    return [{**still, "name": "lower end", "data": lower}, {**still, **filled, "name": name, "data": width}]
