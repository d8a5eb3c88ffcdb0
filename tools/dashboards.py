"""Makes Grafana's dashboard of `deploy/grafana/panels.yml`: `python -m tools.dashboards --check` or `--write`."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tools.generated import write_or_check

FOLDER = Path(__file__).parents[1] / "deploy" / "grafana"
PANELS = FOLDER / "panels.yml"
DASHBOARD = FOLDER / "dashboards" / "lexi.json"
WIDTH = 24
HEIGHTS = {"timeseries": 7, "stat": 4}


def placed(rows: Mapping[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """The panels as Grafana writes them, left to right, row by row, under their row's title."""
    down = 0
    for title, panels in rows.items():
        yield {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": place(0, down, WIDTH, 1)}
        down += 1
        across = height = 0
        for panel in panels:
            width, kind = panel.get("width", 8), panel.get("kind", "timeseries")
            if across + width > WIDTH:
                across, down = 0, down + height
            height = HEIGHTS[kind]
            yield picture(panel, kind) | {"gridPos": place(across, down, width, height)}
            across += width
        down += height


def place(across: int, down: int, width: int, height: int) -> dict[str, int]:
    """Where a panel stands on Grafana's grid."""
    return {"x": across, "y": down, "w": width, "h": height}


def picture(panel: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """One panel as Grafana writes it, without its place."""
    source = {"type": "prometheus", "uid": "${source}"}
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if "bad_from" in panel:
        steps.append({"color": "red", "value": panel["bad_from"]})
    queries: dict[str, str] = panel["queries"]
    defaults = {"unit": panel["unit"], "thresholds": {"mode": "absolute", "steps": steps}}
    return {
        "type": kind,
        "title": panel["title"],
        "datasource": source,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": source, "expr": expression, "legendFormat": legend}
            for index, (legend, expression) in enumerate(queries.items())
        ],
    }


def dashboard() -> str:
    """The dashboard's JSON."""
    rows = yaml.safe_load(PANELS.read_text(encoding="utf-8"))
    variable = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    document = {
        "uid": "lexi",
        "title": "Lexi Gateway",
        "tags": ["lexi"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "utc",
        "templating": {"list": [variable]},
        "panels": [{"id": number, **panel} for number, panel in enumerate(placed(rows), start=1)],
    }
    return json.dumps(document, indent=1) + "\n"


if __name__ == "__main__":
    write_or_check(DASHBOARD, dashboard, source="deploy/grafana/panels.yml")
