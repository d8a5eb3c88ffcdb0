"""What the gate said lately. Each statement is bounded."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

HOURS = 6
MOST_COUNTED = 10_000
MOST_SHOWN = 50

# Read backwards from the newest by gate_verdicts_at, so that neither a long history nor a wild hour is read whole. The
# row without a reason is the total.
LATELY = text(
    """
    with lately as materialized (
      select verdict, would_have, reasons from gate_verdicts
      where at >= now() - make_interval(hours => :hours) order by at desc limit :most
    )
    select null as reason, count(*) as verdicts, count(*) filter (where verdict = 'deny') as refused,
      count(*) filter (where would_have = 'deny') as would_refuse
    from lately
    union all
    select given.reason, count(*), count(*) filter (where verdict = 'deny'),
      count(*) filter (where would_have = 'deny')
    from lately cross join lateral unnest(reasons) as given(reason) group by given.reason
    order by reason nulls first
    """
)
NEWEST = text(
    """
    select seq, at, ticker, side, qty, ref_price, reduce_only, first, verdict, would_have, mode, reasons, strategy,
      key_name, client_order_id, forecast_id, as_of,
      case when 'RULE_DENY' = any(reasons) then cast(payload as jsonb) #> '{decision,rules_reasons}' end as rules
    from gate_verdicts order by seq desc limit :most
    """
)


@dataclass(frozen=True, slots=True)
class ReasonCount:
    """Verdicts that were given a reason: how many, how many were refused, and how many enforce would refuse."""

    reason: str
    verdicts: int
    refused: int
    would_refuse: int


@dataclass(frozen=True, slots=True)
class Lately:
    """The verdicts of the last hours; where `cut`, the newest `MOST_COUNTED` of them alone."""

    total: ReasonCount
    by_reason: Sequence[ReasonCount]

    @property
    def cut(self) -> bool:
        """Whether there may be more than were counted."""
        return self.total.verdicts >= MOST_COUNTED


async def lately(connection: AsyncConnection) -> Lately:
    """The verdicts of the last hours by reason, the most frequent first."""
    found = await connection.execute(LATELY, {"hours": HOURS, "most": MOST_COUNTED})
    total, *rest = [ReasonCount(row.reason or "", row.verdicts, row.refused, row.would_refuse) for row in found]
    return Lately(total, sorted(rest, key=lambda each: -each.verdicts))


async def newest(connection: AsyncConnection) -> Sequence[RowMapping]:
    """The newest verdicts, newest first."""
    return (await connection.execute(NEWEST, {"most": MOST_SHOWN})).mappings().all()
