"""What is drawn of a version: how its latency is spread, and how far its probabilities can be believed."""

import math
from typing import Any

import numpy as np

from libs.evaluation.figures.columns import Columns
from libs.evaluation.figures.estimates import Numbers, rate_of_cases
from libs.evaluation.figures.version import Part, allow_shares
from libs.judgement.assess import POLICY

BINS = 10
PER_DECADE = (10, 20, 40, 80)
FEWEST_BARS = 20


def calibration(part: Part) -> tuple[list[dict[str, Any]], str | None]:
    """Of the cases that a version would allow with some probability, how many were to be allowed; and by what truth.

    The truth is the target, or where no case has one whether the side made money. A bin that no case falls into is left
    out. Intervals are Wilson's, on cases.
    """
    if part.prompt != POLICY:
        return [], None
    of, truth = ("target", part.target) if (part.target >= 0).any() else ("won", part.won)
    shares, wanted, _ = allow_shares(part, truth)
    places = np.minimum((shares * BINS).astype(np.int64), BINS - 1)
    found: list[dict[str, Any]] = []
    for place in range(BINS):
        inside = places == place
        observed = rate_of_cases(wanted[inside] == 1)
        if observed is None:
            continue
        found.append(
            {
                "low": place / BINS,
                "high": (place + 1) / BINS,
                "n": observed.n,
                "predicted": float(shares[inside].mean()),
                "observed": observed.value,
                "observed_low": observed.low,
                "observed_high": observed.high,
            }
        )
    return found, of if found else None


def latency_edges(columns: Columns) -> Numbers:
    """The edges of the bars, alike for all versions: milliseconds, evenly spaced in logarithms; none without times."""
    fresh = columns.answered & ~columns.cached & columns.clean[:, None, None] & (columns.latency_ms > 0)
    times = columns.latency_ms[fresh]
    if not times.size:
        return np.zeros(0)
    least, most = float(np.log10(times.min())), float(np.log10(times.max()))
    steps = next((steps for steps in PER_DECADE if (most - least) * steps >= FEWEST_BARS), PER_DECADE[-1])
    places = np.arange(math.floor(least * steps), math.floor(most * steps) + 2, dtype=np.float64)
    return np.power(10.0, places / steps)


def latency_bars(part: Part, edges: Numbers) -> dict[str, Any]:
    """How many answers fall between each two edges; one that took no time at all counts into the first."""
    if not edges.size:
        return {"edges_ms": [], "counts": []}
    times = np.clip(part.latency_ms[part.fresh], edges[0], np.nextafter(edges[-1], 0))
    counts = np.histogram(times, edges)[0]
    return {"edges_ms": edges.tolist(), "counts": counts.tolist()}
