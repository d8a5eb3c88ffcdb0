"""Forecasts from closing prices. This module runs in the worker process; only there statsforecast is imported."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 80
"""Width of the interval in percent: the realised price lies inside in four of five cases, if the model holds."""
QUANTILE = 1.2815515655446004
"""The standard normal's 90 % quantile: half of what `LEVEL` leaves out lies above."""
LIMIT = 700.0
"""Logs of prices are kept within this, so that no series, however wild, leaves the range of a double."""
THETA = "theta"
FALLBACK = "random_walk_drift"


@dataclass(frozen=True, slots=True)
class Numbers:
    """A forecast of the price at the horizon. `model` says what made it: `theta`, or the fallback."""

    model: str
    mean: float
    lower: float
    upper: float


def random_walk(prices: NDArray[np.float64], steps: int) -> Numbers:
    """A random walk with drift in log prices, the fallback for series that the model refuses.

    Mean and variance `steps` ahead: Hyndman and Athanasopoulos, Forecasting: Principles and Practice (3rd ed.), 5.2
    and 5.5: y + h·b, and s²·h·(1 + h/(T-1)), with b and s the mean and standard deviation of the log returns.
    `mean` is the exponential of the mean in logs, that is the median price. Needs three prices or more.
    """
    returns = np.diff(np.log(prices))
    drift, spread = float(returns.mean()), float(returns.std(ddof=1))
    centre = math.log(float(prices[-1])) + drift * steps
    width = QUANTILE * spread * math.sqrt(steps * (1 + steps / len(returns)))
    mean, lower, upper = (math.exp(max(-LIMIT, min(LIMIT, log))) for log in (centre, centre - width, centre + width))
    return Numbers(FALLBACK, mean, lower, upper)


def theta(prices: NDArray[np.float64], steps: int) -> Numbers | None:
    """statsforecast's Theta on log prices; None when it fails or returns something that cannot be a forecast."""
    from statsforecast.models import Theta

    model: Any = Theta(season_length=1)
    try:
        answer = model.forecast(y=np.log(prices), h=steps, level=[LEVEL])
    except (ValueError, ArithmeticError, IndexError, RuntimeError):
        return None
    mean, lower, upper = (math.exp(float(answer[name][-1])) for name in ("mean", f"lo-{LEVEL}", f"hi-{LEVEL}"))
    sane = all(math.isfinite(value) for value in (mean, lower, upper)) and 0 < lower <= mean <= upper
    return Numbers(THETA, mean, lower, upper) if sane else None


def forecast_one(prices: NDArray[np.float64], steps: int) -> Numbers:
    """The model's forecast, else the fallback's."""
    if float(prices.min()) == float(prices.max()):
        return random_walk(prices, steps)
    return theta(prices, steps) or random_walk(prices, steps)


def forecast_batch(series: Sequence[NDArray[np.float64]], steps: int) -> list[Numbers]:
    """Forecast many series of closing prices, oldest first, `steps` bars ahead, in the order given."""
    return [forecast_one(prices, steps) for prices in series]
