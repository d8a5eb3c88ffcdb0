"""Market notes: true sentences about the latest bar, in place of headlines where none were ingested.

Code writes them from the bars alone: the same bars give the same notes, in the same order.
"""

from datetime import UTC, datetime

import numpy as np

from libs.judgement.bars import Bars

EXTREME_SESSIONS = 60
VOLUME_SESSIONS = 20
LOUD_VOLUME = 1.5
QUIET_VOLUME = 0.5
LEAST_GAP_PCT = 1.0
LEAST_RUN = 3


def market_notes(ticker: str, bars: Bars) -> tuple[str, ...]:
    """What is worth saying about the last of these bars, the most telling first; empty without bars."""
    if not len(bars):
        return ()
    notes = (close_note(bars), extreme_note(bars), volume_note(bars), gap_note(bars), run_note(bars))
    return tuple(f"{ticker} {note}" for note in notes if note)


def close_note(bars: Bars) -> str:
    """The latest close, its day, and its change."""
    day = bars.as_of[-1].astype("datetime64[s]").astype(datetime).replace(tzinfo=UTC).date()
    close = f"closed at {bars.close[-1]:.6g} on {day.isoformat()}"
    if len(bars) == 1:
        return close
    change = change_pct(bars.close[-2], bars.close[-1])
    if f"{abs(change):.1f}" == "0.0":
        return f"{close}, about unchanged"
    return f"{close}, {'up' if change > 0 else 'down'} {abs(change):.1f}%"


def extreme_note(bars: Bars) -> str:
    """Whether the close is the highest or lowest of its last 60 sessions."""
    if len(bars) < EXTREME_SESSIONS:
        return ""
    last, before = bars.close[-1], bars.close[-EXTREME_SESSIONS:-1]
    if last > np.max(before):
        return f"closed at its highest in {EXTREME_SESSIONS} sessions"
    if last < np.min(before):
        return f"closed at its lowest in {EXTREME_SESSIONS} sessions"
    return ""


def run_note(bars: Bars) -> str:
    """How many sessions in a row it has risen or fallen, from three on."""
    signs = np.sign(np.diff(bars.close))
    if not signs.size or signs[-1] == 0:
        return ""
    breaks = np.flatnonzero(signs != signs[-1])
    run = signs.size - (int(breaks[-1]) + 1 if breaks.size else 0)
    if run < LEAST_RUN:
        return ""
    return f"{'rose' if signs[-1] > 0 else 'fell'} {run} sessions in a row"


def gap_note(bars: Bars) -> str:
    """An opening at least one percent away from the close before."""
    if len(bars) == 1:
        return ""
    gap = change_pct(bars.close[-2], bars.open[-1])
    if abs(gap) < LEAST_GAP_PCT:
        return ""
    return f"opened {abs(gap):.1f}% {'above' if gap > 0 else 'below'} the previous close"


def volume_note(bars: Bars) -> str:
    """Volume far from the median of the 20 sessions before."""
    if len(bars) <= VOLUME_SESSIONS:
        return ""
    median = float(np.median(bars.volume[-VOLUME_SESSIONS - 1 : -1]))
    if median <= 0:
        return ""
    times = float(bars.volume[-1]) / median
    if QUIET_VOLUME < times < LOUD_VOLUME:
        return ""
    return f"traded {times:.1f} times its {VOLUME_SESSIONS}-day median volume"


def change_pct(before: float, after: float) -> float:
    """From one price to another, in percent."""
    return 100.0 * (float(after) / float(before) - 1.0)
