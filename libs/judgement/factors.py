"""Factors: what a price history says about a ticker, each as a z-score.

Every factor is a move divided by what it would typically be if returns were independent with the volatility seen
lately, so all are on one scale: 0 is nothing out of the ordinary, beyond 2 either way is rare. They are clipped to
[-3, 3], since daily returns have fat tails. A factor whose history is too short, or that would divide by zero, is left
out: absent, never 0.

r are daily log returns, sigma_n the standard deviation of the last n of them (ddof 1), P prices, V volumes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite, log, nan, sqrt

import numpy as np

from libs.judgement.bars import Bars, Floats

CLIP = 3.0
RECENT = 5
SIGMA = 60
LONG = 120
SHORT = 20
TREND = 50
WINDOW = LONG + 1
LEAST_SCALE = 1e-9


@dataclass(frozen=True, slots=True)
class History:
    """The end of a history as the factors see it, oldest first; `sigma` is sigma_60."""

    log_close: Floats
    returns: Floats
    sigma: float
    log_volume: Floats

    @classmethod
    def of(cls, bars: Bars) -> "History":
        """As many of the last bars as the longest factor needs."""
        log_close = np.log(bars.close[-WINDOW:])
        returns = log_close[1:] - log_close[:-1]
        sigma = spread(returns[-SIGMA:]) if returns.size > 1 else 0.0
        return cls(log_close=log_close, returns=returns, sigma=sigma, log_volume=np.log1p(bars.volume[-WINDOW:]))

    def move(self, start: int, end: int) -> float:
        """The log return from `start` bars ago to `end` bars ago."""
        return float(self.log_close[-1 - end] - self.log_close[-1 - start])


@dataclass(frozen=True, slots=True)
class Factor:
    """One factor: how many bars it needs, its formula in words, and where the idea comes from."""

    name: str
    bars: int
    formula: str
    source: str
    measure: Callable[[History], float]


def mean(values: Floats) -> float:
    """Arithmetic mean."""
    return float(np.add.reduce(values)) / values.size


def spread(values: Floats) -> float:
    """Standard deviation of a sample (ddof 1); written out, since `np.std` costs five times as much on so few."""
    away = values - mean(values)
    return sqrt(float(away @ away) / (values.size - 1))


def ratio(move: float, scale: float) -> float:
    """Move over scale; not a number where the scale is nothing but rounding."""
    return move / scale if scale > LEAST_SCALE else nan


def momentum(horizon: int) -> Callable[[History], float]:
    """The log return over `horizon` days without the last five, in units of its standard deviation."""

    def measure(history: History) -> float:
        return ratio(history.move(horizon, RECENT), history.sigma * sqrt(horizon - RECENT))

    return measure


def reversal(history: History) -> float:
    """The log return of the last five days with its sign turned, in units of its standard deviation."""
    return ratio(-history.move(RECENT, 0), history.sigma * sqrt(RECENT))


def trend(history: History) -> float:
    """The log distance of the price from its mean over n = 50 days.

    For a random walk P_t less the mean of the last n prices has variance sigma² (n - 1)(2n - 1) / 6n.
    """
    logs = history.log_close[-TREND:]
    scale = sqrt((TREND - 1) * (2 * TREND - 1) / (6 * TREND))
    return ratio(float(logs[-1]) - mean(logs), history.sigma * scale)


def volatility_change(history: History) -> float:
    """Log of the volatility of the last 20 days over that of the 100 before, in units of its standard error.

    The variance of a log standard deviation from n observations is about (k - 1) / 4(n - 1), where k is the kurtosis
    of what is observed: 3 would be normal, daily returns have more. k is measured over the 120 days, and at least 3.
    """
    returns = history.returns[-LONG:]
    recent, before = returns[-SHORT:], returns[:-SHORT]
    change = ratio(spread(recent), spread(before))
    if not change > 0:
        return nan
    squares = (returns - mean(returns)) ** 2
    squares /= mean(squares)
    kurtosis = max(3.0, mean(squares**2))
    error = sqrt((kurtosis - 1) / 4 * (1 / (recent.size - 1) + 1 / (before.size - 1)))
    return log(change) / error


def volume_trend(history: History) -> float:
    """Mean log volume of the last five days less that of the 60 before, in standard deviations of the latter."""
    logs = history.log_volume[-(SIGMA + RECENT) :]
    recent, before = logs[-RECENT:], logs[:-RECENT]
    return ratio(mean(recent) - mean(before), spread(before))


FACTORS = (
    *(
        Factor(
            name=f"momentum_{horizon}",
            bars=max(horizon, SIGMA) + 1,
            formula=f"ln(P[t-5] / P[t-{horizon}]) / (sigma_60 * sqrt({horizon - RECENT}))",
            source="Jegadeesh and Titman (1993), scaled by volatility as in Moskowitz, Ooi and Pedersen (2012)",
            measure=momentum(horizon),
        )
        for horizon in (20, 60, 120)
    ),
    Factor(
        name="reversal_5",
        bars=SIGMA + 1,
        formula="-ln(P[t] / P[t-5]) / (sigma_60 * sqrt(5))",
        source="Jegadeesh (1990), Lehmann (1990)",
        measure=reversal,
    ),
    Factor(
        name="trend_50",
        bars=SIGMA + 1,
        formula="(ln P[t] - mean of ln P over 50) / (sigma_60 * sqrt(49 * 99 / 300))",
        source="Brock, Lakonishok and LeBaron (1992); the scale is the variance of that distance in a random walk",
        measure=trend,
    ),
    Factor(
        name="volatility_change",
        bars=WINDOW,
        formula="ln(sd of r over the last 20 / sd over the 100 before) / sqrt((k - 1)/4 * (1/19 + 1/99)), k = kurtosis",
        source="Moreira and Muir (2017); the scale is the sampling error of a log standard deviation",
        measure=volatility_change,
    ),
    Factor(
        name="volume_trend",
        bars=SIGMA + RECENT,
        formula="(mean ln(1+V) over 5 - mean over the 60 before) / sd over the 60 before",
        source="Gervais, Kaniel and Mingelgrin (2001)",
        measure=volume_trend,
    ),
)


def factors(bars: Bars) -> Mapping[str, float]:
    """The factors that the history allows, by name; always finite, within [-3, 3]."""
    scores: dict[str, float] = {}
    if not len(bars):
        return scores
    history = History.of(bars)
    for factor in FACTORS:
        if len(bars) < factor.bars:
            continue
        score = factor.measure(history)
        if isfinite(score):
            scores[factor.name] = max(-CLIP, min(CLIP, score))
    return scores
