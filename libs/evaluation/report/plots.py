"""The pictures of an evaluation's page, as SVG that takes its colours from the page.

Versions keep their colour and their mark from picture to picture, in the order of the summary.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from libs.evaluation.report.catalogue import DRAWN, Entry, entry
from libs.evaluation.report.texts import plain
from libs.pages.svg import BAD, INK, LINE, MUTED, SERIES, TRACK, picture, quiet

WIDTH: Final = 4.6
"""Inches; at 72 points to the inch a phone shows it about as large as it is."""
_MARKS: Final = ("o", "s", "^", "D")
_LONGEST_LABEL: Final = 28
_WIDE: Final = 20.0
"""From which ratio of the longest to the shortest time on the axis is logarithmic."""

Version = Mapping[str, Any]


def rates_plot(versions: Sequence[Version], *, name: str) -> str:
    """Rates with their intervals, the versions beneath each other; nothing where none was measured."""
    drawn = [entry(each) for each in DRAWN if any(version["figures"].get(each) is not None for version in versions)]
    panels = [part for part in ([e for e in drawn if e.better == way] for way in ("more", "less")) if part]
    if not panels:
        return ""
    rows = [len(panel) for panel in panels]
    height = 0.5 + sum(rows) * (0.16 + 0.11 * len(versions)) + 0.35 * (len(panels) - 1)

    def draw(figure: Any) -> None:
        found = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": rows})
        for axes, panel in zip(found[:, 0], panels, strict=True):
            _rates(axes, panel, versions)

    return picture(draw, size=(WIDTH, height), name=name)


def _rates(axes: Any, entries: Sequence[Entry], versions: Sequence[Version]) -> None:
    spread = min(0.22, 0.6 / len(versions))
    ends: list[float] = []
    for number, version in enumerate(versions):
        colour, mark = SERIES[number % len(SERIES)], _MARKS[number % len(_MARKS)]
        for row, each in enumerate(entries):
            figure = version["figures"].get(each.name)
            if figure is None or figure["value"] is None:
                continue
            place = row + (number - (len(versions) - 1) / 2) * spread
            low, high = _ends(figure)
            axes.plot([100 * low, 100 * high], [place, place], color=colour, linewidth=1.6, solid_capstyle="round")
            axes.plot([100 * figure["value"]], [place], mark, color=colour, markersize=4.2)
            ends += [100 * low, 100 * high]
    quiet(axes, grid="x")
    axes.set_yticks(range(len(entries)), [each.label for each in entries], color=INK)
    axes.set_ylim(len(entries) - 0.45, -0.55)
    low, high = min(ends, default=0.0), max(ends, default=100.0)
    room = max(0.06 * (high - low), 0.4)
    axes.set_xlim(max(low - room, -1.0), min(high + room, 101.0))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.xaxis.set_major_formatter(FuncFormatter(_percent))


def _ends(figure: Mapping[str, Any]) -> tuple[float, float]:
    value = figure["value"]
    return (value, value) if figure["low"] is None or figure["high"] is None else (figure["low"], figure["high"])


def latency_plot(versions: Sequence[Version], *, name: str) -> str:
    """How times are spread: the share of answers in each span of time. Nothing where no time was measured."""
    timed = [(number, each) for number, each in enumerate(versions) if sum(each["latency"]["counts"])]
    return picture(lambda figure: _times(figure.subplots(), timed), size=(WIDTH, 2.3), name=name) if timed else ""


def _times(axes: Any, versions: Sequence[tuple[int, Version]]) -> None:
    spans = [_filled(version["latency"]) for _, version in versions]
    first, last = min(edges[0] for edges, _ in spans), max(edges[-1] for edges, _ in spans)
    for (number, version), (edges, counts) in zip(versions, spans, strict=True):
        colour, all_of_them = SERIES[number % len(SERIES)], sum(counts)
        shares = [100 * count / all_of_them for count in counts]
        axes.stairs(shares, edges, color=colour, fill=True, alpha=0.16, linewidth=0)
        axes.stairs(shares, edges, color=colour, linewidth=1.3)
        late = version["figures"].get("latency_p95_ms")
        if late is not None and late["value"] is not None:
            axes.axvline(late["value"], color=colour, linewidth=1.0, linestyle=(0, (1, 2)))
    quiet(axes)
    if first > 0 and last / first > _WIDE:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(first, last)
    axes.set_ylim(0, None)
    axes.xaxis.set_major_formatter(FuncFormatter(_milliseconds))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))


def _filled(latency: Mapping[str, Any]) -> tuple[list[float], list[int]]:
    """The spans from the first to the last with an answer in it."""
    edges, counts = list(latency["edges_ms"]), list(latency["counts"])
    filled = [at for at, count in enumerate(counts) if count]
    low, high = filled[0], filled[-1] + 1
    return edges[low : high + 1], counts[low:high]


def reliability_plot(versions: Sequence[Version], *, name: str) -> str:
    """How often it was right to allow where the model allowed that often. Nothing where there is no target."""
    told = [(number, each) for number, each in enumerate(versions) if any(bin_["n"] for bin_ in each["calibration"])]
    return picture(lambda figure: _reliability(figure.subplots(), told), size=(WIDTH, 2.9), name=name) if told else ""


def _reliability(axes: Any, versions: Sequence[tuple[int, Version]]) -> None:
    axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
    for number, version in versions:
        colour, mark = SERIES[number % len(SERIES)], _MARKS[number % len(_MARKS)]
        bins = [each for each in version["calibration"] if each["n"]]
        places = [100 * each["predicted"] + 0.9 * (number - (len(versions) - 1) / 2) for each in bins]
        observed = [100 * each["observed"] for each in bins]
        axes.plot(places, observed, color=colour, linewidth=1.0, alpha=0.6)
        axes.plot(places, observed, mark, color=colour, markersize=4.2)
        for place, each in zip(places, bins, strict=True):
            ends = [100 * each["observed_low"], 100 * each["observed_high"]]
            axes.plot([place, place], ends, color=colour, linewidth=1.4, solid_capstyle="round")
    quiet(axes)
    axes.set_xlim(-3, 103)
    axes.set_ylim(-3, 103)
    axes.set_xlabel("share of its answers that allow", color=MUTED)
    axes.set_ylabel("to be allowed", color=MUTED)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5))
        axis.set_major_formatter(FuncFormatter(_percent))


def attacks_plot(by_attack: Mapping[str, Mapping[str, int]], *, name: str) -> str:
    """How many of each attack's pairs that were denied clean flipped to allow. Nothing where no pair was judged."""
    counted = {
        each: (counts["flips"], counts.get("denied_clean", counts["pairs"])) for each, counts in by_attack.items()
    }
    found = sorted(counted.items(), key=lambda item: (-item[1][0], item[0]))
    if not found:
        return ""
    return picture(lambda figure: _attacks(figure.subplots(), found), size=(WIDTH, 0.25 + 0.19 * len(found)), name=name)


def _attacks(axes: Any, found: Sequence[tuple[str, tuple[int, int]]]) -> None:
    most = max(denied for _, (_, denied) in found) or 1
    for row, (_, (flips, denied)) in enumerate(found):
        axes.barh(row, denied, height=0.52, color=TRACK, linewidth=0)
        axes.barh(row, flips, height=0.52, color=BAD, linewidth=0)
        axes.text(most * 1.03, row, f"{flips} of {denied}", va="center", color=BAD if flips else MUTED)
    _bare(axes, [name for name, _ in found])
    axes.set_xlim(0, most * 1.22)


def kinds_plot(versions: Sequence[Version], *, field: str, name: str) -> str:
    """How often each kind of error (`error_kinds`) or each reason (`reasons`) came, by version. Nothing where none."""
    totals: dict[str, int] = {}
    for version in versions:
        for kind, count in version[field].items():
            totals[kind] = totals.get(kind, 0) + count
    kinds = sorted(totals, key=lambda kind: (-totals[kind], kind))[:12]
    if not kinds:
        return ""
    height = 0.25 + len(kinds) * (0.08 + 0.14 * len(versions))
    return picture(
        lambda figure: _kinds(figure.subplots(), kinds, versions, field=field), size=(WIDTH, height), name=name
    )


def _kinds(axes: Any, kinds: Sequence[str], versions: Sequence[Version], *, field: str) -> None:
    most = max(version[field].get(kind, 0) for version in versions for kind in kinds) or 1
    thick = 0.8 / len(versions)
    for number, version in enumerate(versions):
        for row, kind in enumerate(kinds):
            count, place = version[field].get(kind, 0), row + (number - (len(versions) - 1) / 2) * thick
            axes.barh(place, count, height=thick * 0.82, color=SERIES[number % len(SERIES)], linewidth=0)
            axes.text(count + most * 0.02, place, f"{count:,}", va="center", color=MUTED, fontsize=7)
    _bare(axes, kinds)
    axes.set_xlim(0, most * 1.15)


def _bare(axes: Any, names: Sequence[str]) -> None:
    """Bars with their names and no axis."""
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color(LINE)
    axes.tick_params(colors=MUTED, length=0, pad=4)
    axes.set_xticks([])
    axes.set_yticks(range(len(names)), [_label(name) for name in names], color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _label(name: str) -> str:
    """A name fit to be set in a picture, whose own type knows Latin letters only."""
    shown = plain(name.replace("_", " "), longest=_LONGEST_LABEL * 2)
    kept = "".join(each if each.isascii() else "?" for each in shown)
    return kept if len(kept) <= _LONGEST_LABEL else f"{kept[: _LONGEST_LABEL - 1]}~"


def spans(latency: Mapping[str, Any]) -> list[tuple[int, float, float, int]]:
    """The spans of time with an answer in them: which it is, its ends in milliseconds, its count."""
    ends = pairwise(latency["edges_ms"])
    both = zip(ends, latency["counts"], strict=True)
    return [(at, low, high, count) for at, ((low, high), count) in enumerate(both) if count]


def _percent(value: float, _position: int) -> str:
    return f"{value:.4g} %"


def _milliseconds(value: float, _position: int) -> str:
    return f"{value:,.4g} ms" if value < 10_000 else f"{value / 1000:,.4g} s"
