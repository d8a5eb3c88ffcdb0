"""What Postgres knows of this moment: the account, the feed, the switches, the halt, and the newest forecasts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

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
    select account, market_open, differences, extract(epoch from clock_timestamp() - reconciled_at)::float8 as age_s
    from broker_state
    """
)
# A feed that was asked and has nothing newer confirms its newest prices: a daily one is heard of all day.
FEED = text(
    """
    select f.feed, f.last_as_of, f.done,
      extract(epoch from clock_timestamp() - greatest(f.last_write_at, confirmed.at))::float8 as age_s
    from (select * from feeds where last_write_at is not null order by last_write_at desc limit 1) as f
    cross join lateral (
      select max(b.delivered_at) as at from forecast_heads h
      join bars b on b.feed = h.feed and b.ticker = h.ticker and b.as_of = h.as_of where h.feed = f.feed
    ) as confirmed
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
    select f.id, f.ticker, f.horizon, f.as_of, f.ts, f.judged_at, f.last_price, f.mean, f.lower, f.upper,
      f.features -> 'llm' -> 'rationale' ->> 'text' as rationale,
      f.features -> 'llm' -> 'policy' ->> 'status' as status,
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
    order by greatest(f.ts, f.judged_at) desc
    """
)


@dataclass(frozen=True, slots=True)
class Moment:
    """One look at Postgres."""

    account: RowMapping | None
    feed: RowMapping | None
    switches: Sequence[Standing]
    halt: HaltRow | None
    forecasts: Sequence[RowMapping]

    def lines(self) -> dict[str, tuple[State, str]]:
        """Broker, feed, gate and halt in words."""
        return {
            "broker": self._broker(),
            "feed": self._feed(),
            "gate": self._gate(),
            "halt": ("good", "entries may be made") if self.halt is None else ("bad", halted(self.halt)),
        }

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
    return Moment(account, feed, await standing(connection), await open_halt(connection), forecasts)


async def newest_forecasts(connection: AsyncConnection, feed: str) -> Sequence[RowMapping]:
    """The newest forecast of each series of a feed, the latest judged first; of many series those furthest on."""
    heads = (await connection.execute(HEADS, {"feed": feed, "most": MOST_FORECASTS})).all()
    if not heads:
        return ()
    moments = [head.as_of for head in heads]
    values = {"ids": [head.id for head in heads], "first": min(moments), "last": max(moments)}
    return (await connection.execute(FORECASTS, values)).mappings().all()
