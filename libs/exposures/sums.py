"""From the exposures of a phase to sums: counts of each arm, and per metric what the statistics need of each pair.

Postgres packs the rows and numpy adds them up: about a second of either for a million exposures, and some 300 MB while
it lasts. Both grow in proportion.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.exposures.columns import PACKED, RECORD, Bools, Columns, Floats, Integers
from libs.exposures.metrics import Metric
from libs.statistics.clustering import PairSums

PART = RECORD.itemsize * 50_000
"""Bytes of a part: a driver puts each value together in one go while others wait, so none may be large."""

READ = text(
    f"""
    select arm, since, judged, overlap, substring(packed from part * {PART} + 1 for {PART}) as packed
    from (
      select arm, string_agg({PACKED}, '') as packed, min(assigned_at) as since, max(judged_at) as judged,
        bool_or(horizon not like '1_') as overlap
      from exposures where key = :key and phase = :phase group by arm
    ) as whole cross join lateral generate_series(0, (length(whole.packed) - 1) / {PART}) as part
    """
)


@dataclass(frozen=True, slots=True)
class ArmSums:
    """How many exposures of an arm came how far. `units` are what was drawn, each counted once.

    `answered` are valid or invalid answers; a version that cannot be asked has the latter. `skipped` were
    never asked, since a newer tick came.
    `settled` have an outcome; `units_settled` are units with an answer and an outcome.
    """

    arm: str
    exposures: int = 0
    units: int = 0
    judged: int = 0
    answered: int = 0
    invalid: int = 0
    timed_out: int = 0
    unavailable: int = 0
    skipped: int = 0
    allowed: int = 0
    settled: int = 0
    units_settled: int = 0


@dataclass(frozen=True, slots=True)
class MetricSums:
    """A metric in two arms, the control (1) and a candidate (2), clustered by day, by ticker, and by both at once."""

    days: PairSums
    tickers: PairSums
    cells: PairSums


@dataclass(frozen=True, slots=True)
class PhaseSums:
    """Everything a report on a phase rests on. `pairs` are by candidate, then by the metric's name.

    `overlap` says that there are horizons longer than a bar, whose outcomes make neighbouring days hang together.
    """

    since: datetime | None = None
    judged_at: datetime | None = None
    overlap: bool = False
    arms: Mapping[str, ArmSums] = field(default_factory=dict[str, ArmSums])
    pairs: Mapping[str, Mapping[str, MetricSums]] = field(default_factory=dict[str, Mapping[str, MetricSums]])


@dataclass(frozen=True, slots=True)
class Phase:
    """The packed exposures of a phase, by arm and in parts, when the first was assigned and the last judged, and
    `overlap`."""

    packed: Mapping[str, Sequence[bytes]] = field(default_factory=dict[str, Sequence[bytes]])
    since: datetime | None = None
    judged_at: datetime | None = None
    overlap: bool = False


async def read_phase(connection: AsyncConnection, key: str, phase: str) -> Phase:
    """The exposures of a phase as Postgres packs them; nothing where there are none."""
    rows = (await connection.execute(READ, {"key": key, "phase": phase})).all()
    if not rows:
        return Phase()
    packed: defaultdict[str, list[bytes]] = defaultdict(list)
    for row in rows:
        packed[row.arm].append(row.packed)
    judged = [row.judged for row in rows if row.judged is not None]
    return Phase(
        packed=packed,
        since=min(row.since for row in rows),
        judged_at=max(judged) if judged else None,
        overlap=any(row.overlap for row in rows),
    )


def sums_of(read: Phase, *, control: str, candidates: Sequence[str], metrics: Sequence[Metric]) -> PhaseSums:
    """Counts of every arm of a phase, and the sums of every candidate beside the control.

    Pure, and it takes a while: keep it off an event loop.
    """
    rows = Columns.read(read.packed)
    arms = {arm: arm_sums(arm, rows.of_arm(arm)) for arm in rows.arms}
    grid = Grid(rows)
    pairs = {
        candidate: {metric.name: grid.cells(metric, control=control, candidate=candidate).sums() for metric in metrics}
        for candidate in candidates
    }
    return PhaseSums(read.since, read.judged_at, read.overlap, arms, pairs)


def arm_sums(arm: str, rows: Columns) -> ArmSums:
    """The counts of one arm's exposures."""
    return ArmSums(
        arm=arm,
        exposures=len(rows),
        units=_distinct(rows.unit),
        judged=_count(rows.status != 0),
        answered=_count(rows.answered),
        invalid=_count(rows.invalid),
        timed_out=_count(rows.timed_out),
        unavailable=_count(rows.unavailable),
        skipped=_count(rows.skipped),
        allowed=_count(rows.allow),
        settled=_count(rows.settled),
        units_settled=_distinct(rows.unit[rows.answered & rows.settled]),
    )


@dataclass(frozen=True, slots=True)
class Cells:
    """A metric in two arms, added up in each cell, a ticker on a day. Cells of a ticker are neighbours.

    `ticker` and `day` count the tickers and the days from 0, days in their order; `four` are n and total of the
    control, then of the candidate.
    """

    ticker: Integers
    day: Integers
    four: tuple[Floats, Floats, Floats, Floats]

    def of_days(self, count: int) -> "Cells":
        """Those of the first so many days alone."""
        chosen = self.day < count
        n1, t1, n2, t2 = (each[chosen] for each in self.four)
        return Cells(self.ticker[chosen], self.day[chosen], (n1, t1, n2, t2))

    def sums(self) -> MetricSums:
        """What the statistics need of them."""
        tickers = np.flatnonzero(_changes(self.ticker))
        return MetricSums(
            days=PairSums.of(*(np.bincount(self.day, weights=each) for each in self.four)),
            tickers=PairSums.of(*(_added_up(each, tickers) for each in self.four)),
            cells=PairSums.of(*self.four),
        )


class Grid:
    """Exposures sorted into cells, so that adding up each cell is one pass over neighbours.

    `days` are those that have any, in their order.
    """

    def __init__(self, rows: Columns) -> None:
        ordered = rows.of(np.lexsort((rows.day, rows.ticker)))
        new_ticker = _changes(ordered.ticker)
        self._rows = ordered
        self._cells = np.flatnonzero(new_ticker | _changes(ordered.day))
        self._ticker_of = np.cumsum(new_ticker[self._cells].astype(np.int64))
        self.days, self._day_of = np.unique(ordered.day[self._cells], return_inverse=True)

    def cells(self, metric: Metric, *, control: str, candidate: str) -> Cells:
        """A metric in two arms, cell by cell; an arm without exposures adds nothing."""
        four = (*self._in_cells(metric, control), *self._in_cells(metric, candidate))
        return Cells(self._ticker_of, self._day_of, four)

    def _in_cells(self, metric: Metric, arm: str) -> tuple[Floats, Floats]:
        """n and total of an arm in each cell."""
        rows = self._rows
        if arm not in rows.arms:
            return np.zeros(len(self._cells)), np.zeros(len(self._cells))
        counted = metric.present(rows) & (rows.arm == rows.arms.index(arm))
        total = np.where(counted, metric.value(rows), 0.0)
        return _added_up(counted.astype(np.float64), self._cells), _added_up(total, self._cells)


def _added_up(values: Floats, starts: Integers) -> Floats:
    """The sums of runs of neighbours, each from where it starts to where the next one does."""
    return values if len(starts) == len(values) else np.add.reduceat(values, starts)


def _changes(values: Integers) -> Bools:
    """Where a value differs from the one before; the first always does."""
    changed = np.ones(len(values), dtype=np.bool_)
    np.not_equal(values[1:], values[:-1], out=changed[1:])
    return changed


def _distinct(values: Integers) -> int:
    """How many different values there are. Sorting is several times as fast as the hash table of `numpy.unique`."""
    return _count(_changes(np.sort(values)))


def _count(marked: Bools) -> int:
    return int(np.count_nonzero(marked))
