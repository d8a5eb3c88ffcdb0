"""A course as a picture: the difference and its confidence sequence, as SVG that takes its colours from the page."""

import re
from collections.abc import Sequence
from html import escape
from io import StringIO
from typing import Any, Final

import matplotlib as mpl
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from libs.exposures.course import Look

SIZE: Final = (4.6, 2.0)
"""Inches; at 72 points to the inch a phone shows it about as large as it is."""

# Colours that stand for the page's own, so that one picture serves light and dark.
_COLOURS: Final = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--line)",
    "#040404": "var(--accent)",
    "#050505": "var(--worth)",
}
_INK, _MUTED, _LINE, _ACCENT, _WORTH = _COLOURS
_DATES: Final = ["%Y", "%b", "%b %d", "%H:%M", "%H:%M", "%S.%f"]
_UNSAID: Final = ("Date", "Creator", "Format", "Type")
_UNUSED_IDS: Final = "figure|axes|patch|matplotlib|text|line2d|xtick|ytick|PolyCollection|FillBetween"


def course_plot(looks: Sequence[Look], *, worth: float, factor: float, name: str) -> str:
    """The picture of one course as an SVG element. Values are multiplied by `factor`; `name` keeps its ids apart.

    The grey band holds the differences not worth having, the blue one is the confidence sequence.
    """
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 8.0, "axes.unicode_minus": True}
    with mpl.rc_context(settings):  # pyright: ignore[reportUnknownMemberType] - typed in part
        figure: Any = Figure(figsize=SIZE, layout="constrained")
        _draw(figure.subplots(), looks, worth=worth * factor, factor=factor)
        out = StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(_UNSAID))
    return _element(out.getvalue(), name)


def _draw(axes: Any, looks: Sequence[Look], *, worth: float, factor: float) -> None:
    axes.axhspan(-worth, worth, color=_WORTH, linewidth=0)
    axes.axhline(0, color=_MUTED, linewidth=0.8)
    known = [(look.day, look.estimate) for look in looks if look.estimate is not None]
    if known:
        days = [day for day, _ in known]
        low, high = [each.low * factor for _, each in known], [each.high * factor for _, each in known]
        axes.fill_between(days, low, high, color=_ACCENT, alpha=0.22, linewidth=0)
        for ends in (low, high):
            axes.plot(days, ends, color=_ACCENT, linewidth=0.8)
    values = [look.value * factor for look in looks]
    axes.plot([look.day for look in looks], values, color=_INK, linewidth=1.4, solid_capstyle="round")
    axes.plot([looks[-1].day], values[-1:], "o", color=_INK, markersize=3.5)
    _frame(axes)
    settled = [look.value * factor for look in looks if look.estimate is not None] or values
    ends = [end * factor for _, each in known[len(known) // 2 :] for end in (each.low, each.high)]
    _limits(axes, [*settled, *ends, worth, -worth])


def _frame(axes: Any) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_LINE)
    axes.grid(axis="y", color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, length=0, pad=3)
    locator = AutoDateLocator(minticks=2, maxticks=5)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, formats=_DATES, show_offset=False))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.set_major_formatter(FuncFormatter(_signed))
    axes.margins(x=0.01)


def _signed(value: float, _position: int) -> str:
    return "0" if abs(value) < 1e-12 else f"{value:+,.6g}".replace("-", "\N{MINUS SIGN}")


def _limits(axes: Any, values: Sequence[float]) -> None:
    """Room for where it came to: the first days, and the wide intervals after them, may run out of the picture."""
    room = 0.12 * (max(values) - min(values)) or 1.0
    axes.set_ylim(min(values) - room, max(values) + room)


def _element(svg: str, name: str) -> str:
    """The element alone, without size and ids that the page has no use for, in the page's colours and type."""
    found = svg[svg.index("<svg") :]
    found = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", found, flags=re.DOTALL)
    found = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", found, count=1)
    found = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", found, count=1)
    found = re.sub(rf' id="(?:{_UNUSED_IDS})[^"]*"', "", found)
    found = re.sub(r" font-family: [^;\"]*;", "", found)
    for stand_in, own in _COLOURS.items():
        found = found.replace(stand_in, own)
    return found.replace("<svg", f'<svg role="img" aria-label="{escape(name)}"', 1)
