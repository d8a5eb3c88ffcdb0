"""Cases from stored forecasts: what was judged, with what came of it, balanced toward the dangerous errors."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, cast
from uuid import UUID

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.evaluation.cases.case import CaseError, EvalCase, Realised, case_from, document_of
from libs.judgement.record import RecordError, inputs_from_record
from libs.judgement.rules import Rules
from tools.llm_eval.extract_strata import STORED, Taken, shares

PAGE: Final = 200

# Every judged forecast of the period with its stratum (the order of tools.llm_eval.extract_strata.STORED), and of each
# stratum as many as could be wanted, drawn by a hash of id and seed. The bundled replay starts over when it ends: of
# the same forecast in several runs the newest counts. What policy and rules say together is what would have gated.
GATHER = text(
    """
    with judged as (
      select distinct on (case when f.feed like 'replay:%' then 'replay' else f.feed end, f.ticker, f.horizon, f.model,
          f.as_of)
        f.id, f.as_of, f.features #>> '{llm,policy,status}' as status,
        cast(f.features #>> '{llm,policy,decision,allow}' as boolean) as model_allow,
        cast(f.features #>> '{llm,policy,rules,allow}' as boolean) as rules_allow,
        case f.features #>> '{llm,inputs,signal,side}'
          when 'buy' then o.realised_return when 'sell' then -o.realised_return end as made
      from forecasts f
      left join outcomes o on o.feed = f.feed and o.ticker = f.ticker and o.horizon = f.horizon and o.model = f.model
        and o.as_of = f.as_of
      where f.ts >= :since and f.ts < :until and f.judged_at is not null
      order by case when f.feed like 'replay:%' then 'replay' else f.feed end, f.ticker, f.horizon, f.model, f.as_of,
        f.ts desc
    ), told as (
      select id, as_of, case
          when status = 'ok' and model_allow and rules_allow and made < 0 then 0
          when status = 'ok' and model_allow <> rules_allow then 1
          when status = 'invalid' then 2
          when status = 'ok' and not (model_allow and rules_allow) and made > 0 then 3
          else 4
        end as stratum
      from judged
    ), drawn as (
      select id, as_of, stratum,
        row_number() over (partition by stratum order by md5(cast(id as text) || :seed)) as place,
        row_number() over (order by md5(cast(id as text) || :seed)) as place_of_all
      from told
    ), counted as (
      select stratum, count(*) as there from told group by stratum
    )
    select id, as_of, stratum, place, (select jsonb_object_agg(stratum, there) from counted) as there from drawn
    where case when :balance then place <= :limit else place_of_all <= :limit end
    order by as_of, id
    """
)

# The limit keeps the look-up one of single rows, each in the one partition that its as_of names.
FETCH = text(
    """
    select f.*, o.realised_return, o.realised_as_of
    from unnest(cast(:ids as uuid[]), cast(:moments as timestamptz[])) with ordinality as wanted (id, as_of, position)
    cross join lateral (
      select id, feed, ticker, horizon, model, as_of, features -> 'llm' as llm from forecasts
      where forecasts.as_of = wanted.as_of and forecasts.id = wanted.id limit 1
    ) as f
    left join outcomes o on o.feed = f.feed and o.ticker = f.ticker and o.horizon = f.horizon and o.model = f.model
      and o.as_of = f.as_of
    order by wanted.position
    """
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which stored forecasts: written in [since, until), at most `limit`, drawn by `seed`, balanced or as they come."""

    since: datetime
    until: datetime
    limit: int
    seed: int
    balance: bool


@dataclass(frozen=True, slots=True)
class Drawn:
    """One forecast that was drawn, and its stratum."""

    id: UUID
    as_of: datetime
    stratum: str


async def draw(engine: AsyncEngine, wanted: Wanted) -> tuple[list[Drawn], Taken]:
    """Which forecasts to take, by market time, and how many of each stratum there are."""
    values = {
        "since": wanted.since,
        "until": wanted.until,
        "limit": wanted.limit,
        "seed": str(wanted.seed),
        "balance": wanted.balance,
    }
    async with engine.connect() as connection:
        rows = (await connection.execute(GATHER, values)).all()
    counts = cast("dict[str, int]", rows[0].there) if rows else {}
    there = {name: counts.get(str(number), 0) for number, name in enumerate(STORED)}
    share = shares(there, limit=wanted.limit)
    drawn = [Drawn(row.id, row.as_of, STORED[int(row.stratum)]) for row in rows]
    if wanted.balance:
        drawn = [one for one, row in zip(drawn, rows, strict=True) if row.place <= share[one.stratum]]
    return drawn, Taken(there)


async def cases(
    engine: AsyncEngine, drawn: Sequence[Drawn], *, rules: Rules, taken: Taken
) -> AsyncGenerator[EvalCase, None]:
    """The cases of these forecasts. One that is gone meanwhile, or cannot be read, is counted in `taken`."""
    for start in range(0, len(drawn), PAGE):
        page = drawn[start : start + PAGE]
        values = {"ids": [one.id for one in page], "moments": [one.as_of for one in page]}
        async with engine.connect() as connection:
            rows = {row["id"]: row for row in (await connection.execute(FETCH, values)).mappings()}
        for one in page:
            row = rows.get(one.id)
            if row is None:
                taken.leave_out("gone since it was looked for")
                continue
            try:
                case = case_of(row, rules)
            except (RecordError, CaseError) as error:
                taken.leave_out(str(error))
                continue
            taken.count(one.stratum)
            yield case


def case_of(row: RowMapping, rules: Rules) -> EvalCase:
    """The case of a stored forecast; what is right is what today's rules say. Raises `RecordError` or `CaseError`."""
    inputs = inputs_from_record(row["llm"] or {})
    change = row["realised_return"]
    case = EvalCase(
        id=str(row["id"]),
        as_of=inputs.as_of,
        feed=row["feed"],
        inputs=inputs,
        target=rules.judge(inputs, row["feed"]).allow,
        realised=None if change is None else Realised(change, row["realised_as_of"]),
    )
    return case_from(document_of(case))
