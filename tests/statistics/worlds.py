"""Simulated experiments: days that differ, tickers that differ, and arms that do not, unless told to.

Everything that hangs together in the records does so here: a day's weather over all tickers, a ticker's ways over all
days, and a few forecasts of one ticker on one day. Both arms see the same. A look is taken at the end of every day.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from libs.statistics.clustering import PairSums

Numbers: TypeAlias = npt.NDArray[np.float64]
Kind = Literal["rate", "skewed", "normal", "heavy"]
Unit = Literal["ticker_day", "ticker", "forecast"]
Look: TypeAlias = tuple[PairSums, PairSums, PairSums]

CHUNK = 100  # runs at a time, for the sake of memory


@dataclass(frozen=True, slots=True)
class World:
    """One kind of experiment: what is measured, how it is dealt out, and how strongly its members hang together.

    `level` is the log-odds of a rate, else the mean of what the value is made of; `share` is the candidate's weight.
    `day`, `ticker` and `cell` are the standard deviations of their effects on that scale; `shift` is what the
    candidate adds. On one day in fifty a rate falls away altogether, for both arms.
    """

    kind: Kind
    unit: Unit = "ticker_day"
    tickers: int = 5
    share: float = 0.5
    level: float = 0.0
    days: int = 120
    each: int = 3
    day: float = 1.5
    ticker: float = 1.5
    cell: float = 0.5
    shift: float = 0.0

    def __str__(self) -> str:
        at = f" at {1 / (1 + np.exp(-self.level)):.0%}" if self.kind == "rate" else ""
        return f"{self.kind}{at}, {self.tickers} tickers, by {self.unit}, candidate {self.share:.0%}"


def runs(world: World, count: int, *, seed: int) -> Iterator[Iterator[Look]]:
    """Each run's looks: sums by day, by ticker and by cell, after the first day, the second, and so on."""
    chance = np.random.default_rng(seed)
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        yield from _looks(_members(world, size, chance))


def true_means(world: World) -> tuple[float, float]:
    """The means of control and candidate over many days, without effects of tickers: known to some thousandths."""
    endless = replace(world, ticker=0.0, days=20_000, share=0.5, unit="ticker_day", tickers=10)
    n1, t1, n2, t2 = (float(each.sum()) for each in _members(endless, 1, np.random.default_rng(1)))
    return t1 / n1, t2 / n2


def true_difference(world: World) -> float:
    """What an endless experiment would find."""
    first, second = true_means(world)
    return second - first


def _members(world: World, size: int, chance: np.random.Generator) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """n1, t1, n2, t2 of shape (runs, days, tickers)."""
    shape = (size, world.days, world.tickers)
    effect = world.level + chance.normal(0, world.cell, shape)
    effect += chance.normal(0, world.day, (size, world.days, 1)) + chance.normal(
        0, world.ticker, (size, 1, world.tickers)
    )
    if world.kind == "rate":
        effect -= 8.0 * np.sign(world.level or 1) * (chance.random((size, world.days, 1)) < 0.02)
    second = _dealt(world, shape, chance)
    first = world.each - second
    return first, _totals(world, effect, first, chance), second, _totals(world, effect + world.shift, second, chance)


def _dealt(world: World, shape: tuple[int, int, int], chance: np.random.Generator) -> Numbers:
    """How many of a cell's members are the candidate's."""
    if world.unit == "forecast":
        return chance.binomial(world.each, world.share, shape).astype(np.float64)
    drawn = (shape[0], 1, shape[2]) if world.unit == "ticker" else shape
    return np.broadcast_to(np.where(chance.random(drawn) < world.share, float(world.each), 0.0), shape)


def _totals(world: World, effect: Numbers, n: Numbers, chance: np.random.Generator) -> Numbers:
    if world.kind == "rate":
        return chance.binomial(n.astype(np.int64), 1 / (1 + np.exp(-effect))).astype(np.float64)
    total = np.zeros(effect.shape)
    for member in range(world.each):
        own = chance.standard_t(3, effect.shape) if world.kind == "heavy" else chance.normal(0, 1, effect.shape)
        value = np.exp(0.5 * effect + 0.7 * own) if world.kind == "skewed" else effect + own
        total += np.where(member < n, value, 0.0)
    return total


def _looks(members: tuple[Numbers, Numbers, Numbers, Numbers]) -> Iterator[Iterator[Look]]:
    size, days, _ = members[0].shape
    by_day = _summed(*(each.sum(axis=2) for each in members), over=None)
    by_cell = _summed(*members, over=2)
    by_ticker = _so_far(*(each.cumsum(axis=1) for each in members))
    for run in range(size):
        yield (
            (PairSums(0, *by_day[run][day]), PairSums(0, *by_ticker[run][day]), PairSums(0, *by_cell[run][day]))
            for day in range(days)
        )


def _products(n1: Numbers, t1: Numbers, n2: Numbers, t2: Numbers) -> list[Numbers]:
    """In the order of the fields of PairSums after `clusters`, which nothing here asks for."""
    return [
        n1, n2, t1, t2, n1 * n1, n1 * t1, t1 * t1, n2 * n2, n2 * t2, t2 * t2, n1 * n2, n1 * t2, t1 * n2, t1 * t2,
    ]  # fmt: skip


def _summed(n1: Numbers, t1: Numbers, n2: Numbers, t2: Numbers, *, over: int | None) -> Any:
    """Clusters that come and stay: sums up to each day, as lists [run][day][field]."""
    rows = [each if over is None else each.sum(axis=over) for each in _products(n1, t1, n2, t2)]
    return np.stack([each.cumsum(axis=1) for each in rows], axis=-1).tolist()


def _so_far(n1: Numbers, t1: Numbers, n2: Numbers, t2: Numbers) -> Any:
    """Clusters that grow: sums over the tickers as each stands on each day."""
    return np.stack([each.sum(axis=2) for each in _products(n1, t1, n2, t2)], axis=-1).tolist()
