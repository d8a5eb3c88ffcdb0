"""What Postgres knows of this moment: the account, the feed, the switches, the halt, and the newest forecasts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias
from uuid import UUID

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.switches import CAUTIOUS
from libs.switches.reading import Standing, standing
from libs.trading.halts import HaltRow, open_halt

State: TypeAlias = Literal["good", "note", "bad", "unknown"]

MOST_FORECASTS = 40
ACCOUNT_AGE_S = 30.0
FEED_QUIET_S = 120.0
"""Feeds differ in how often they write; from here on one that stands still should be noticed, and then be amiss."""
FEED_AGE_S = 600.0

ACCOUNT = text(
    """
    select account, market_open, differences, reconciled_at,
      extract(epoch from clock_timestamp() - reconciled_at)::float8 as age_s
    from broker_state
    """
)
# A feed that was asked and has nothing newer confirms its newest prices: a daily one is heard of all day.
FEED = text(
    """
    select f.feed, f.last_as_of, f.done, greatest(f.last_write_at, confirmed.at) as heard_at,
      extract(epoch from clock_timestamp() - greatest(f.last_write_at, confirmed.at))::float8 as age_s
    from (select * from feeds where last_write_at is not null order by last_write_at desc limit 1) as f
    cross join lateral (
      select max(b.delivered_at) as at from forecast_heads h
      join bars b on b.feed = h.feed and b.ticker = h.ticker and b.as_of = h.as_of where h.feed = f.feed
    ) as confirmed
    """
)
# When entries were last let in again, and when a kill switch that nobody turned off ended by itself.
ENDED = text(
    """
    select (select max(rearmed_at) from halts) as rearmed_at, (
      select case when expires_at <= clock_timestamp() then expires_at end from switches
      where name = 'ORDER_GATE_DISABLED' order by id desc limit 1
    ) as kill_ended_at
    """
)
# The newest of each series; a head is one row, however long the history is.
HEADS = text(
    """
    select id, as_of from forecast_heads where feed = cast(:feed as text) order by as_of desc, ticker limit :most
    """
)
# The bounds on as_of leave all but the partitions of these moments alone. Verdicts on a forecast are among the newest
# of its ticker; the log of verdicts has no index by forecast.
FORECASTS = text(
    """
    select f.id, f.feed, f.ticker, f.horizon, f.model, f.as_of, f.ts, f.judged_at, f.last_price, f.mean, f.lower,
      f.upper,
      f.features -> 'llm' -> 'rationale' ->> 'text' as rationale,
      f.features -> 'llm' -> 'policy' ->> 'status' as status,
      f.features -> 'llm' -> 'policy' ->> 'error' as error,
      (f.features -> 'llm' -> 'policy' -> 'decision' ->> 'allow')::boolean as allow,
      f.features -> 'llm' -> 'policy' -> 'decision' -> 'reasons' as reasons,
      (f.features -> 'llm' -> 'policy' -> 'rules' ->> 'allow')::boolean as rules_allow,
      f.features -> 'llm' -> 'policy' -> 'rules' -> 'reasons' as rules_reasons,
      f.features -> 'llm' -> 'inputs' -> 'signal' ->> 'side' as side,
      v.verdict, v.would_have, v.reasons as verdict_reasons
    from forecasts f
    left join lateral (
      select verdict, would_have, reasons from (
        select seq, forecast_id, verdict, would_have, reasons from gate_verdicts
        where ticker = f.ticker order by seq desc limit 50
      ) g where g.forecast_id = f.id order by g.seq desc limit 1
    ) v on true
    where f.id = any(:ids) and f.as_of between :first and :last
    order by f.ticker, f.horizon, f.model
    """
)
# What was last judged before a forecast that waits. So far back and no further: what a slow model left out for longer
# is no news.
JUDGED_BEFORE = text(
    """
    select waits.id as waiting, judged.id, judged.as_of
    from forecasts waits cross join lateral (
      select id, as_of from (
        select id, as_of, judged_at from forecasts
        where feed = waits.feed and ticker = waits.ticker and horizon = waits.horizon and model = waits.model
          and as_of < waits.as_of and as_of between :not_before and :last
        order by as_of desc limit 100
      ) as older
      where judged_at is not null order by as_of desc limit 1
    ) as judged
    where waits.id = any(:ids) and waits.as_of between :first and :last
    """
)
PENDING = "pending"
LOOK_BACK = timedelta(days=31)


@dataclass(frozen=True, slots=True)
class Moment:
    """One look at Postgres."""

    account: RowMapping | None
    feed: RowMapping | None
    switches: Sequence[Standing]
    halt: HaltRow | None
    rearmed_at: datetime | None
    kill_ended_at: datetime | None
    forecasts: Sequence[Mapping[str, Any]]

    def lines(self) -> dict[str, tuple[State, str]]:
        """Broker, feed, gate and halt in words."""
        return {
            "broker": self._broker(),
            "feed": self._feed(),
            "gate": self._gate(),
            "halt": ("good", "entries may be made") if self.halt is None else ("bad", halted(self.halt)),
        }

    def since(self) -> dict[str, datetime | None]:
        """When these lines became what they say, where a row tells; None where none does."""
        stale = self.account is not None and self.account["age_s"] > ACCOUNT_AGE_S
        quiet = self.feed is not None and (self.feed["done"] or self.feed["age_s"] > FEED_QUIET_S)
        return {
            "broker": self.account["reconciled_at"] if stale and self.account is not None else None,
            "feed": self.feed["heard_at"] if quiet and self.feed is not None else None,
            "gate": self._turned_at(),
            "halt": self.rearmed_at if self.halt is None else self.halt.halted_at,
        }

    def _turned_at(self) -> datetime | None:
        by_name = {each.name: each for each in self.switches}
        off = by_name["ORDER_GATE_DISABLED"]
        if off.value != CAUTIOUS["ORDER_GATE_DISABLED"]:
            return off.set_at
        turned = (off.set_at, by_name["LLM_SHADOW_MODE"].set_at, self.kill_ended_at)
        return max((at for at in turned if at is not None), default=None)

    def _broker(self) -> tuple[State, str]:
        if self.account is None:
            return "unknown", "the account was never read"
        if self.account["age_s"] > ACCOUNT_AGE_S:
            return "bad", f"the account was last read {self.account['age_s']:.0f} s ago, so entries are refused"
        market = "the market is open" if self.account["market_open"] else "the market is closed"
        count = len(self.account["differences"])
        if count:
            return "bad", f"{count} differences between our record and the broker's; {market}"
        return "good", f"read {self.account['age_s']:.0f} s ago; {market}"

    def _feed(self) -> tuple[State, str]:
        if self.feed is None:
            return "unknown", "no forecast was written yet"
        words = f"{self.feed['feed']}, {self.feed['last_as_of']:%Y-%m-%d}, heard of {self.feed['age_s']:.0f} s ago"
        if self.feed["done"]:
            return "note", f"{words}; this run has ended"
        if self.feed["age_s"] > FEED_AGE_S:
            return "bad", words
        return ("good" if self.feed["age_s"] <= FEED_QUIET_S else "note"), words

    def _gate(self) -> tuple[State, str]:
        by_name = {each.name: each for each in self.switches}
        off, shadow = by_name["ORDER_GATE_DISABLED"], by_name["LLM_SHADOW_MODE"]
        if off.value != CAUTIOUS["ORDER_GATE_DISABLED"]:
            until = "" if off.expires_at is None else f" until {off.expires_at:%H:%M:%S} UTC"
            return "bad", f"the kill switch is on{until} (by {off.set_by}: {off.reason})"
        if shadow.value:
            return "note", f"shadow: policy verdicts are only logged (by {shadow.set_by})"
        return "good", f"enforce: policy verdicts act (by {shadow.set_by})"


def halted(halt: HaltRow) -> str:
    """A halt in words."""
    earliest = f"{halt.halted_until:%Y-%m-%d %H:%M:%S} UTC"
    return f"entries are halted ({halt.reason}) until a person re-arms, at {earliest} at the earliest"


async def read_moment(connection: AsyncConnection) -> Moment:
    """Read it all; a handful of small statements."""
    account = (await connection.execute(ACCOUNT)).mappings().first()
    feed = (await connection.execute(FEED)).mappings().first()
    forecasts = () if feed is None else await newest_forecasts(connection, str(feed["feed"]))
    ended = (await connection.execute(ENDED)).one()
    switches, halt = await standing(connection), await open_halt(connection)
    return Moment(account, feed, switches, halt, ended.rearmed_at, ended.kill_ended_at, forecasts)


async def newest_forecasts(connection: AsyncConnection, feed: str) -> Sequence[Mapping[str, Any]]:
    """The newest forecast of each series of a feed, by ticker; of many series those furthest on.

    One that is still being judged has `before`: the last of its series that was judged, None where there is none.
    """
    heads = (await connection.execute(HEADS, {"feed": feed, "most": MOST_FORECASTS})).all()
    if not heads:
        return ()
    found = [dict(row) for row in await _forecasts(connection, {head.id: head.as_of for head in heads})]
    waiting = {row["id"]: row for row in found if row["error"] == PENDING}
    if waiting:
        before = await _judged_before(connection, {key: row["as_of"] for key, row in waiting.items()})
        for key, row in waiting.items():
            row["before"] = before.get(key)
    return found


async def _judged_before(connection: AsyncConnection, moments: Mapping[UUID, datetime]) -> dict[UUID, dict[str, Any]]:
    """The forecast that was judged before each of these."""
    asked = _bounds(moments)
    values = {**asked, "not_before": asked["first"] - LOOK_BACK}
    judged = (await connection.execute(JUDGED_BEFORE, values)).all()
    if not judged:
        return {}
    rows = {row["id"]: dict(row) for row in await _forecasts(connection, {row.id: row.as_of for row in judged})}
    return {row.waiting: rows[row.id] for row in judged}


async def _forecasts(connection: AsyncConnection, moments: Mapping[UUID, datetime]) -> Sequence[RowMapping]:
    return (await connection.execute(FORECASTS, _bounds(moments))).mappings().all()


def _bounds(moments: Mapping[UUID, datetime]) -> dict[str, Any]:
    return {"ids": list(moments), "first": min(moments.values()), "last": max(moments.values())}
