"""Pictures as SVG elements that take their colours and their type from the page they stand in.

A drawing uses the stand-in colours below; in the element they are the page's own variables, so that one picture serves
light and dark.
"""

import re
from collections.abc import Callable
from html import escape
from io import StringIO
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

INK: Final = "#010101"
MUTED: Final = "#020202"
LINE: Final = "#030303"
ACCENT: Final = "#040404"
WORTH: Final = "#050505"
GOOD: Final = "#060606"
BAD: Final = "#070707"
TRACK: Final = "#080808"
SERIES: Final = ("#090909", "#0a0a0a", "#0b0b0b", "#0c0c0c")
"""Four things side by side that are none of them better: versions, arms."""

_COLOURS: Final = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    ACCENT: "var(--accent)",
    WORTH: "var(--worth)",
    GOOD: "var(--good)",
    BAD: "var(--bad)",
    TRACK: "var(--track)",
    **{stand_in: f"var(--series-{number})" for number, stand_in in enumerate(SERIES, start=1)},
}
_UNSAID: Final = ("Date", "Creator", "Format", "Type")
_UNUSED_IDS: Final = (
    "figure|axes|patch|matplotlib|text|line2d|xtick|ytick|legend|"
    "PolyCollection|PathCollection|LineCollection|FillBetween"
)


def picture(draw: Callable[[Any], None], *, size: tuple[float, float], name: str) -> str:
    """What `draw` puts on a matplotlib figure of `size` (inches), as one SVG element.

    `name` is what a screen reader says, and keeps the picture's ids apart from those of others on the page. Texts are
    never read as formulas.
    """
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 8.0,
        "axes.unicode_minus": True,
        "text.parse_math": False,
    }
    with mpl.rc_context(settings):  # pyright: ignore[reportUnknownMemberType] - typed in part
        figure: Any = Figure(figsize=size, layout="constrained")
        draw(figure)
        out = StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(_UNSAID))
    return _element(out.getvalue(), name)


def quiet(axes: Any, *, grid: str = "y") -> None:
    """No frame but the line below, and a grid that stays behind what is drawn."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.grid(axis=grid, color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, length=0, pad=3)


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
