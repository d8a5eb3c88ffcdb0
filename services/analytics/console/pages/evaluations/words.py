"""Runs, trends and two runs beside each other, as rows of tables."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from services.analytics.console.pages.evaluations.queries import Judged, Point, Run

THRESHOLDS = ("of", "threshold", "verdict", "in words")
TREND = ("when", "run", "version", "validity", "95 % interval", "n", "against its run before")
NO_THRESHOLD = "no threshold was asked"
VERDICTS: Mapping[bool | None, str] = {True: "passed", False: "MISSED", None: NO_THRESHOLD}
_FACTORS: Mapping[str, tuple[float, str]] = {"rate": (100, " %"), "return": (100, " %"), "ms": (1, " ms")}


def verdict(run: Run) -> str:
    """What a run came to: a run that has not ended, or not well, says so."""
    if run.state != "done":
        return run.state
    return f"finished, {NO_THRESHOLD}" if run.passed is None else VERDICTS[run.passed]


def versions(run: Run) -> str:
    """The versions that a run judged, each with what was found of it."""
    return "\n".join(f"{one.prompt} {one.version}: {VERDICTS[one.passed]}" for one in run.prompts)


def threshold_rows(judged: Sequence[Judged]) -> Iterator[tuple[object, ...]]:
    """Every threshold of a run by version."""
    for one in judged:
        for each in one.thresholds:
            name = str(each.get("name", ""))
            yield f"{one.prompt} {one.version}", name, VERDICTS[each.get("passed")], str(each.get("sentence", ""))


def by_version(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points of a trend by prompt and version, each oldest first."""
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(f"{point.prompt} {point.version}", []).append(point)
    return found


def trend_rows(points: Sequence[Point]) -> list[tuple[object, ...]]:
    """The trend, newest first; a version is held against its own run before."""
    last: dict[str, Point] = {}
    rows: list[tuple[object, ...]] = []
    for point in points:
        name = f"{point.prompt} {point.version}"
        before = last.get(name)
        change = "" if before is None else f"{100 * (point.value - before.value):+.2f} points"
        if before is not None and before.hash != point.hash:
            change += ", other words"
        last[name] = point
        ends = figure({"value": point.value, "low": point.low, "high": point.high, "unit": "rate"})[1]
        rows.append((point.at, point.name, name, f"{100 * point.value:.2f} %", ends, point.n, change))
    return rows[::-1]


def figure(found: Mapping[str, Any] | None) -> tuple[str, str]:
    """A figure and its interval in its unit; empty where there is none."""
    if found is None or found.get("value") is None:
        return "", ""
    factor, unit = _FACTORS.get(str(found.get("unit")), (1, ""))
    low, high = found.get("low"), found.get("high")
    ends = "" if low is None or high is None else f"{_digits(factor * low)} to {_digits(factor * high)}{unit}"
    return f"{_digits(factor * found['value'])}{unit}", ends


def _digits(value: float) -> str:
    """Four digits; of large numbers all, since nobody reads 1.462e+04."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def columns(runs: Sequence[Run]) -> list[tuple[str, Mapping[str, Any]]]:
    """A column for each version of each run, as far as their summaries go."""
    return [
        (f"{run.name}: {one['prompt']} {one['version']}", one)
        for run in runs
        for one in (run.summary or {}).get("versions", ())
    ]


def side_by_side(runs: Sequence[Run]) -> list[tuple[object, ...]]:
    """Their figures: one row for each that any of them has."""
    found = columns(runs)
    rows: list[tuple[object, ...]] = [
        ("cases, twins aside", *(one["cases"] for _, one in found)),
        ("questions", *(one["asked"] for _, one in found)),
        ("thresholds", *(VERDICTS[one.get("passed")] for _, one in found)),
    ]
    names = {name: None for _, one in found for name in one["figures"]}
    for name in names:
        cells = [figure(one["figures"].get(name)) for _, one in found]
        if any(value for value, _ in cells):
            texts = (_cell(one["figures"].get(name), *cell) for (_, one), cell in zip(found, cells, strict=True))
            rows.append((name.replace("_", " "), *texts))
    return rows


def _cell(found: Mapping[str, Any] | None, value: str, ends: str) -> str:
    """A figure with its interval and with what it stands on."""
    number = None if found is None else found.get("n")
    aside = ", ".join(filter(None, (ends, "" if number is None else f"n={number}")))
    return f"{value}\n({aside})" if value and aside else value


def same_ground(first: Run, second: Run) -> list[str]:
    """What forbids to read two runs as one comparison."""
    found: list[str] = []
    if _cases(first) != _cases(second):
        found.append("They asked about different cases: a difference may be one of the cases.")
    if first.model != second.model:
        found.append(f"They asked different models: {first.model} and {second.model}.")
    return found


def _cases(run: Run) -> Any:
    """The hash of the cases that a run asked about."""
    summary: Mapping[str, Any] = run.summary or {}
    return summary.get("run", {}).get("dataset", {}).get("sha256")
