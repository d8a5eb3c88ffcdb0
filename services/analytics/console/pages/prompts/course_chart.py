"""The chart of a course: numbers only, in the colours of the style sheet, which follow light and dark by themselves."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, Final

from services.analytics.console.layout.charts import band
from services.analytics.console.pages.prompts.words import PERCENT

ROOM: Final = 0.12
"""Of the height of what is shown, above it and below it."""


def options(course: Mapping[str, Any]) -> dict[str, Any]:
    """The chart of a course: the difference, its interval, zero, and what is not worth having."""
    factor = 100 if course["unit"] in PERCENT else 1
    points = [
        (_milliseconds(point["day"]), *(_scaled(point[name], factor) for name in ("value", "low", "high")))
        for point in course["points"]
    ]
    worth = course["worth"] * factor
    low, high = limits(points, worth)
    line = {"lineStyle": {"color": "var(--line)"}}
    label = {"color": "var(--muted)", "fontSize": 11, "hideOverlap": True}
    known = [(at, low, high) for at, _, low, high in points if low is not None and high is not None]
    return {
        "useUTC": True,
        "animation": False,
        "textStyle": {"color": "var(--ink)", "fontFamily": "system-ui, sans-serif"},
        "grid": {"left": 4, "right": 12, "top": 10, "bottom": 4, "containLabel": True},
        "tooltip": {
            "trigger": "item",
            "confine": True,
            "backgroundColor": "var(--card)",
            "borderColor": "var(--line)",
            "textStyle": {"color": "var(--ink)"},
        },
        "xAxis": {"type": "time", "splitNumber": 3, "axisLabel": label, "axisLine": {**line, "onZero": False}},
        "yAxis": {
            "type": "value", "min": low, "max": high, "splitNumber": 3, "splitLine": {"show": True, **line},
            "axisLabel": {**label, "showMinLabel": False, "showMaxLabel": False},
        },
        "series": [*band("interval", known, opacity=0.2), _difference(points, worth)],
    }  # fmt: skip


def limits(points: Sequence[tuple[Any, ...]], worth: float) -> tuple[float, float]:
    """Room for where it came to: the first days, and the wide intervals after them, may run out of the picture."""
    known = [(low, high) for _, _, low, high in points if low is not None]
    values = [value for _, value, low, _ in points if low is not None or not known]
    seen = [*values, *(end for ends in known[len(known) // 2 :] for end in ends), worth, -worth]
    room = ROOM * (max(seen) - min(seen)) or 1.0
    return _brief(min(seen) - room), _brief(max(seen) + room)


def _difference(points: Sequence[tuple[Any, ...]], worth: float) -> dict[str, Any]:
    still = {"silent": True, "animation": False}
    return {
        "name": "difference",
        "type": "line",
        "data": [list(point) for point in points],
        "dimensions": ["market day", "difference", "from", "to"],
        "encode": {"x": 0, "y": 1, "tooltip": [0, 1, 2, 3]},
        "symbol": "circle",
        "symbolSize": 4,
        "emphasis": {"disabled": True},
        "lineStyle": {"width": 1.5, "color": "var(--ink)"},
        "itemStyle": {"color": "var(--ink)"},
        "markArea": {
            **still,
            "itemStyle": {"color": "var(--muted)", "opacity": 0.16},
            "data": [[{"yAxis": _brief(-worth)}, {"yAxis": _brief(worth)}]],
        },
        "markLine": {
            **still,
            "symbol": "none",
            "label": {"show": False},
            "lineStyle": {"color": "var(--muted)", "type": "solid", "width": 1},
            "data": [{"yAxis": 0}],
        },
    }


def _milliseconds(day: str) -> int:
    at = date.fromisoformat(day)
    return int(datetime(at.year, at.month, at.day, tzinfo=UTC).timestamp() * 1000)


def _scaled(value: float | None, factor: int) -> float | None:
    return None if value is None else _brief(value * factor)


def _brief(value: float) -> float:
    return float(f"{value:.4g}")
