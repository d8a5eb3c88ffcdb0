"""A series of forecasts as a chart: numbers and our own words only, so that nothing a stranger wrote gets into it.

The chart is drawn as SVG with the colours of the style sheet, which follow light and dark by themselves.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from services.analytics.console.layout.charts import band
from services.analytics.console.layout.parts import shown
from services.analytics.console.pages.decision.words import Word, word_of
from services.analytics.console.pages.forecasts.queries import Row

SHOWN_AT_FIRST: Final = 60
"""How many of the newest points are in view before anybody moves the slider."""
UNITS: Final = {"d": "days", "h": "hours", "m": "minutes"}
HORIZON: Final = re.compile(r"([0-9]{1,4})([dhm])")
MARKS: Final[Mapping[Word, tuple[str, str]]] = {
    "allow": ("circle", "good"),
    "deny by policy": ("triangle", "bad"),
    "deny by rules": ("diamond", "note"),
    "no decision": ("rect", "muted"),
}
"""Shape and colour of each kind of decision; a colour is a name of the style sheet."""
SIGNS: Final[Mapping[str, tuple[str, str]]] = {
    "price": ("\N{EM DASH}", "muted"),
    "forecast mean": ("\N{EN DASH} \N{EN DASH}", "accent"),
    "forecast band": ("\N{DARK SHADE}", "accent"),
    "realised price": ("\N{BLACK RECTANGLE}", "ink"),
    "allow": ("\N{BLACK CIRCLE}", "good"),
    "deny by policy": ("\N{BLACK UP-POINTING TRIANGLE}", "bad"),
    "deny by rules": ("\N{BLACK DIAMOND}", "note"),
    "no decision": ("\N{BLACK SQUARE}", "muted"),
}
"""The legend: what stands for what, with its colour."""
DIMENSIONS: Final = ["made", "price", "mean", "lower", "upper"]


def meant_for(row: Row, horizon: str) -> datetime:
    """The moment a forecast was for: of its outcome, else when it is due, else as far ahead as its horizon says."""
    known = row["realised_as_of"] or row["due_at"]
    if known is not None:
        return known
    length = HORIZON.fullmatch(horizon)
    return row["as_of"] + (timedelta() if length is None else timedelta(**{UNITS[length[2]]: int(length[1])}))


def word_of_row(row: Row) -> Word:
    """What a row's decision came to."""
    return word_of(allow=row["allow"], rules_allow=row["rules_allow"])


def marked(rows: Sequence[Row]) -> dict[Word, list[Row]]:
    """The rows by what their decision came to, oldest first: point n of a kind's marks is its n-th row."""
    return {kind: [row for row in reversed(rows) if word_of_row(row) == kind] for kind in MARKS}


def options(rows: Sequence[Row], horizon: str) -> dict[str, Any]:
    """The chart of rows, newest first."""
    oldest_first = list(reversed(rows))
    ahead = [(milliseconds(meant_for(row, horizon)), row) for row in oldest_first]
    in_view = ahead[-SHOWN_AT_FIRST:]
    begins = milliseconds(in_view[0][1]["as_of"]) if in_view else None
    settled = [row for row in oldest_first if row["realised_price"] is not None]
    return {
        "useUTC": True,
        "animation": False,
        "textStyle": {"color": "var(--ink)", "fontFamily": "system-ui, sans-serif"},
        "grid": {"left": 8, "right": 16, "top": 16, "bottom": 64, "containLabel": True},
        "tooltip": {
            "trigger": "item",
            "backgroundColor": "var(--card)",
            "borderColor": "var(--line)",
            "textStyle": {"color": "var(--ink)"},
        },
        "xAxis": {"type": "time", **_axis(split=False)},
        "yAxis": {"type": "value", "scale": True, **_axis(split=True)},
        "dataZoom": [_slider(begins)],
        "series": [
            *band("forecast band", [(at, brief(row["lower"]), brief(row["upper"])) for at, row in ahead], opacity=0.16),
            _line("forecast mean", [[at, brief(row["mean"])] for at, row in ahead], "accent", dashed=True),
            _line("price", [[milliseconds(row["as_of"]), brief(row["last_price"])] for row in oldest_first], "muted"),
            _realised([[milliseconds(row["realised_as_of"]), brief(row["realised_price"])] for row in settled]),
            *(_marks(kind, found) for kind, found in marked(rows).items()),
        ],
    }


def milliseconds(moment: datetime) -> int:
    """A moment as the chart's axis counts."""
    return round(moment.timestamp() * 1000)


def brief(price: float) -> float:
    """A price as the table shows it."""
    return float(shown(price))


def _axis(*, split: bool) -> dict[str, Any]:
    line = {"lineStyle": {"color": "var(--line)"}}
    return {
        "axisLabel": {"color": "var(--muted)", "fontSize": 12, "hideOverlap": True},
        "axisLine": line,
        "axisTick": line,
        "splitLine": {"show": split, **line},
    }


def _slider(begins: int | None) -> dict[str, Any]:
    """A slider below the chart, at first over the newest points."""
    return {
        "type": "slider",
        "startValue": begins,
        "bottom": 8,
        "height": 26,
        "showDetail": False,
        "brushSelect": False,
        "borderColor": "var(--line)",
        "fillerColor": "var(--line)",
        "backgroundColor": "transparent",
        "handleStyle": {"color": "var(--card)", "borderColor": "var(--muted)"},
        "moveHandleStyle": {"color": "var(--muted)"},
        "dataBackground": {"lineStyle": {"color": "var(--muted)"}, "areaStyle": {"color": "var(--line)"}},
        "selectedDataBackground": {"lineStyle": {"color": "var(--accent)"}, "areaStyle": {"color": "var(--line)"}},
    }


def _line(name: str, data: list[list[Any]], colour: str, *, dashed: bool = False) -> dict[str, Any]:
    return {
        "name": name,
        "type": "line",
        "data": data,
        "symbol": "none",
        "silent": True,
        "emphasis": {"disabled": True},
        "lineStyle": {"width": 1.5, "color": f"var(--{colour})", "type": "dashed" if dashed else "solid"},
        "itemStyle": {"color": f"var(--{colour})"},
    }


def _marks(kind: Word, rows: Sequence[Row]) -> dict[str, Any]:
    """The decisions of a kind, where they were made; pointing at one says the numbers of its forecast."""
    data = [
        [milliseconds(row["as_of"]), *(brief(row[name]) for name in ("last_price", "mean", "lower", "upper"))]
        for row in rows
    ]
    symbol, colour = MARKS[kind]
    more = {"dimensions": DIMENSIONS, "encode": {"x": 0, "y": 1, "tooltip": [0, 1, 2, 3, 4]}, "cursor": "pointer"}
    return {**_scatter(kind, data, symbol=symbol, size=10, colour=colour), **more}


def _realised(data: list[list[Any]]) -> dict[str, Any]:
    """Short bars below the marks: they stand where the decisions of the next forecasts do."""
    bars = _scatter("realised price", data, symbol="rect", size=[14, 3], colour="ink")
    return {**bars, "silent": True, "itemStyle": {"color": "var(--ink)", "opacity": 1}}


def _scatter(name: str, data: list[list[Any]], *, symbol: str, size: object, colour: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "scatter",
        "data": data,
        "symbol": symbol,
        "symbolSize": size,
        "emphasis": {"disabled": True},
        "itemStyle": {"color": f"var(--{colour})", "borderColor": "var(--card)", "borderWidth": 1, "opacity": 1},
    }
