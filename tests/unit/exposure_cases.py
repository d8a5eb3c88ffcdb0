"""Exposures as plain rows, and the slow way to add them up that the fast one is held against."""

import hashlib
import random
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid4

from libs.exposures import columns
from libs.exposures.sums import ArmSums, MetricSums, Phase
from libs.statistics.clustering import PairSums

POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
CONTROL, CANDIDATE = "1.0.0", "1.1.0"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of `exposures`; judged and settled as far as its fields are not None."""

    arm: str = CONTROL
    unit: str = "AAA|2024-01-02"
    ticker: str = "AAA"
    as_of: datetime = datetime(2024, 1, 2, 21, tzinfo=UTC)
    side: str = "buy"
    status: str | None = None
    timed_out: bool | None = None
    cached: bool | None = None
    total_ms: float | None = None
    tokens: int | None = None
    allow: bool | None = None
    rules_allow: bool | None = None
    realised: float | None = None

    @property
    def day(self) -> date:
        """The UTC date of market time."""
        return self.as_of.astimezone(UTC).date()

    @property
    def direction(self) -> int:
        """The sign of the entry."""
        return {"buy": 1, "sell": -1}.get(self.side, 0)


def answered(row: Row) -> bool:
    """Whether an answer came."""
    return row.status in {"ok", "invalid"}


def counts(row: Row) -> bool:
    """Whether there is an answer and an outcome of an entry."""
    return answered(row) and row.realised is not None and row.direction != 0


Value = Callable[[Row], float | None]

SLOW: Mapping[str, Value] = {
    "validity": lambda row: float(row.status == "ok") if answered(row) and not row.cached else None,
    "latency": lambda row: row.total_ms if answered(row) and not row.cached else None,
    "tokens": lambda row: row.tokens if answered(row) and not row.cached and row.total_ms is not None else None,
    "deny_rate": lambda row: float(not row.allow) if answered(row) else None,
    "agreement": lambda row: (
        float(bool(row.allow) == row.rules_allow) if answered(row) and row.rules_allow is not None else None
    ),
    "brier": lambda row: (float(bool(row.allow)) - float(made(row) > 0)) ** 2 if counts(row) else None,
    "return_allowed": lambda row: made(row) if counts(row) and row.rules_allow and row.allow else None,
    "return_blocked": lambda row: made(row) if counts(row) and row.rules_allow and not row.allow else None,
}
"""The value of each metric, None where a row has none."""


def made(row: Row) -> float:
    """The return in the entry's direction."""
    return (row.realised or 0.0) * row.direction


def slow_pair(rows: Sequence[Row], value: Value, cluster: Callable[[Row], object]) -> PairSums:
    """The sums of a metric over clusters, one row and one cluster at a time."""
    clusters: defaultdict[object, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    for row in rows:
        found = value(row)
        if found is None or row.arm not in {CONTROL, CANDIDATE}:
            continue
        place = 0 if row.arm == CONTROL else 2
        clusters[cluster(row)][place] += 1
        clusters[cluster(row)][place + 1] += found
    four = list(clusters.values())

    def over(first: int, second: int) -> float:
        return sum(each[first] * each[second] for each in four)

    return PairSums(
        clusters=len(four),
        n1=sum(each[0] for each in four), t1=sum(each[1] for each in four),
        n2=sum(each[2] for each in four), t2=sum(each[3] for each in four),
        n1n1=over(0, 0), n1t1=over(0, 1), t1t1=over(1, 1), n2n2=over(2, 2), n2t2=over(2, 3), t2t2=over(3, 3),
        n1n2=over(0, 2), n1t2=over(0, 3), t1n2=over(1, 2), t1t2=over(1, 3),
    )  # fmt: skip


def slow_sums(rows: Sequence[Row], name: str) -> MetricSums:
    """A metric's sums by day, by ticker and by both."""
    return MetricSums(
        days=slow_pair(rows, SLOW[name], lambda row: row.day),
        tickers=slow_pair(rows, SLOW[name], lambda row: row.ticker),
        cells=slow_pair(rows, SLOW[name], lambda row: (row.ticker, row.day)),
    )


def slow_counts(rows: Iterable[Row], arm: str) -> ArmSums:
    """How far the exposures of an arm came."""
    mine = [row for row in rows if row.arm == arm]
    return ArmSums(
        arm=arm,
        exposures=len(mine),
        units=len({row.unit for row in mine}),
        judged=sum(row.status is not None for row in mine),
        answered=sum(answered(row) for row in mine),
        invalid=sum(row.status == "invalid" for row in mine),
        timed_out=sum(bool(row.timed_out) for row in mine),
        unavailable=sum(row.status == "unavailable" for row in mine),
        skipped=sum(row.status == "skipped" for row in mine),
        allowed=sum(bool(row.allow) for row in mine),
        settled=sum(row.realised is not None for row in mine),
        units_settled=len({row.unit for row in mine if answered(row) and row.realised is not None}),
    )


def any_rows(count: int) -> list[Row]:
    """Rows at all stages of their life, the same ones each time."""
    chance = random.Random(11)
    rows: list[Row] = []
    for _ in range(count):
        status = chance.choice([None, "ok", "invalid", "unavailable", "skipped"])
        judged = status in {"ok", "invalid", "unavailable"}
        rows.append(
            Row(
                arm=chance.choice([CONTROL, CANDIDATE]),
                ticker=chance.choice("ABC"),
                as_of=POSTGRES_EPOCH
                + timedelta(hours=chance.randint(-50_000, 200_000), microseconds=chance.randint(0, 1)),
                side=chance.choice(["buy", "sell", "none"]),
                status=status,
                timed_out=chance.choice([True, False]) if judged else None,
                cached=chance.choice([True, False]) if judged else None,
                total_ms=chance.randint(0, 90_000) / 2 if judged else None,
                tokens=chance.randint(0, 5_000) if judged else None,
                allow=chance.choice([None, True, False]) if judged else None,
                rules_allow=chance.choice([None, True, False]) if judged else None,
                realised=chance.choice([None, chance.gauss(0, 0.1)]),
            )
        )
    return rows


def hashed(name: str) -> int:
    """A 64-bit hash; Postgres has another one, and any will do."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def packed(row: Row) -> bytes:
    """A row as Postgres packs it."""
    flags = columns.STATUS.get(row.status or "", 0)
    marks = {
        columns.TIMED_OUT: row.timed_out,
        columns.CACHED: row.cached,
        columns.ALLOW: row.allow,
        columns.RULED: row.rules_allow is not None,
        columns.RULES_ALLOW: row.rules_allow,
        columns.BUY: row.side == "buy",
        columns.SELL: row.side == "sell",
        columns.TIMED: row.total_ms is not None,
    }
    flags |= sum(bit for bit, marked in marks.items() if marked)
    since = row.as_of - POSTGRES_EPOCH
    return struct.pack(
        ">qqqifid",
        (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds,
        hashed(row.ticker),
        hashed(row.unit),
        flags,
        row.total_ms or 0.0,
        row.tokens or 0,
        float("nan") if row.realised is None else row.realised,
    )


def phase_of(rows: Sequence[Row]) -> Phase:
    """Rows as `read_phase` gives them."""
    arms = {row.arm for row in rows}
    return Phase({arm: [packed(row) for row in rows if row.arm == arm] for arm in arms})


COLUMNS = (
    "key, forecast_id, phase, unit, arm, feed, ticker, horizon, as_of, side, status, timed_out, cached, total_ms, "
    "tokens, allow, rules_allow, realised_return, judged_at, settled_at"
)


def record(row: Row, *, key: str, phase: str, forecast_id: UUID | None = None) -> tuple[object, ...]:
    """A row for `COLUMNS`."""
    now = datetime.now(UTC)
    return (
        key, forecast_id or uuid4(), phase, row.unit, row.arm, "file:x", row.ticker, "1d", row.as_of, row.side,
        row.status, row.timed_out, row.cached, row.total_ms, row.tokens, row.allow, row.rules_allow, row.realised,
        None if row.status is None else now, None if row.realised is None else now,
    )  # fmt: skip
