"""A course as a picture: the difference and its confidence sequence, as SVG that takes its colours from the page."""

from collections.abc import Sequence
from typing import Any, Final

from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.ticker import FuncFormatter, MaxNLocator

from libs.exposures.course import Look
from libs.pages.svg import ACCENT, INK, MUTED, WORTH, picture, quiet

SIZE: Final = (4.6, 2.0)
"""Inches; at 72 points to the inch a phone shows it about as large as it is."""

_DATES: Final = ["%Y", "%b", "%b %d", "%H:%M", "%H:%M", "%S.%f"]


def course_plot(looks: Sequence[Look], *, worth: float, factor: float, name: str) -> str:
    """The picture of one course as an SVG element. Values are multiplied by `factor`; `name` keeps its ids apart.

    The grey band holds the differences not worth having, the blue one is the confidence sequence.
    """
    return picture(
        lambda figure: _draw(figure.subplots(), looks, worth=worth * factor, factor=factor), size=SIZE, name=name
    )


def _draw(axes: Any, looks: Sequence[Look], *, worth: float, factor: float) -> None:
    axes.axhspan(-worth, worth, color=WORTH, linewidth=0)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    known = [(look.day, look.estimate) for look in looks if look.estimate is not None]
    if known:
        days = [day for day, _ in known]
        low, high = [each.low * factor for _, each in known], [each.high * factor for _, each in known]
        axes.fill_between(days, low, high, color=ACCENT, alpha=0.22, linewidth=0)
        for ends in (low, high):
            axes.plot(days, ends, color=ACCENT, linewidth=0.8)
    values = [look.value * factor for look in looks]
    axes.plot([look.day for look in looks], values, color=INK, linewidth=1.4, solid_capstyle="round")
    axes.plot([looks[-1].day], values[-1:], "o", color=INK, markersize=3.5)
    _frame(axes)
    settled = [look.value * factor for look in looks if look.estimate is not None] or values
    ends = [end * factor for _, each in known[len(known) // 2 :] for end in (each.low, each.high)]
    _limits(axes, [*settled, *ends, worth, -worth])


def _frame(axes: Any) -> None:
    quiet(axes)
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
