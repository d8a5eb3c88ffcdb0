"""Every statement of a verdict's transaction, over one connection that belongs to the desk alone."""

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg

from libs.trading.types import Order

CONNECT_S = 5.0

# Everything that permits an entry is read and written behind this lock, so that no two verdicts of any process rest on
# the same state. A verdict is only told once it is on disk. The reads are by key whatever the planner's statistics say,
# and each is planned once.
BEGIN = "begin; select pg_advisory_xact_lock(hashtext('gate'))"
SESSION = {
    "application_name": "lexi-api-gate",
    "timezone": "UTC",
    "jit": "off",
    "synchronous_commit": "on",
    "enable_seqscan": "off",
    "plan_cache_mode": "force_generic_plan",
    "default_transaction_isolation": "read committed",
    "standard_conforming_strings": "on",  # `_literal` rests on it
    # Whoever holds the lock and freezes, or is cut off, must not stop every entry of the house for long.
    "client_connection_check_interval": "1s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}

FINAL = "('filled', 'canceled', 'expired', 'rejected', 'replaced', 'done_for_day', 'not_sent')"

# What holds for every order of the transaction, and what holds for each; $1 order ids as the callers gave them, $2
# tickers, $3 horizons (null: whatever is forecast), $4 ids of the orders themselves, $5 of verdicts that were told
# already. An open order is worth its limit, else our last price; one without either leaves the limits no ground (NaN).
# clock_timestamp(), since a transaction that waited for the lock must not see a switch or an age of before.
READ = f"""
with asked as (
  select * from unnest($1::text[], $2::text[], $3::text[], $4::uuid[], $5::uuid[])
    with ordinality as a (client_order_id, ticker, horizon, order_id, verdict_id, n)
), newest as materialized (
  select feed from feeds order by last_write_at desc nulls last limit 1
), desk as materialized (
  select clock_timestamp() as at,
    (select value from switches where name = 'ORDER_GATE_DISABLED' and (expires_at is null
      or expires_at > clock_timestamp()) order by id desc limit 1) as gate_disabled,
    (select value from switches where name = 'LLM_SHADOW_MODE' and (expires_at is null
      or expires_at > clock_timestamp()) order by id desc limit 1) as shadow,
    exists (select 1 from halts where rearmed_at is null) as halted,
    (select count(*) from (
      select client_order_id from authorisations where at > clock_timestamp() - interval '60 seconds'
      union select client_order_id from orders
        where origin = 'entry' and created_at > clock_timestamp() - interval '60 seconds'
    ) as lately) as orders_last_minute,
    (select seq from gate_verdicts order by seq desc limit 1) as head_seq,
    (select hash from gate_verdicts order by seq desc limit 1) as head_hash,
    (select account from broker_state) as account,
    (select last_equity - equity from broker_state) as lost_today,
    (select cast(extract(epoch from clock_timestamp() - reconciled_at) as float8) from broker_state) as account_age_s,
    (select feed from newest) as feed,
    (select json_agg(json_build_array(ticker, qty::text, buying::text, selling::text, price::text)) from (
      select ticker, sum(qty) as qty, sum(buying) as buying, sum(selling) as selling, max(price) as price from (
        select ticker, qty, 0::numeric as buying, 0::numeric as selling, market_price as price from positions
        union all
        select ticker, 0, case side when 'buy' then greatest(qty - filled_qty, 0) else 0 end,
          case side when 'sell' then greatest(qty - filled_qty, 0) else 0 end,
          coalesce(limit_price, (select cast(close as numeric) from bars where feed = (select feed from newest)
            and ticker = orders.ticker order by as_of desc limit 1), filled_avg_price, 'NaN')
        from orders where status not in {FINAL}
      ) as parts group by ticker
    ) as held) as holdings
)
select asked.n, desk.*,
  head.horizon as forecast_horizon, head.model, head.as_of, head.id as head_id,
  price.close as last_price, price.age_s as price_age_s,
  told.id as told_id, told.at as told_at, told.intent as told_intent, told.verdict as told_verdict,
  told.would_have as told_would_have, told.mode as told_mode, told.reasons as told_reasons,
  told.forecast_id as told_forecast_id, told.decision_age_s as told_decision_age_s,
  own.at > desk.at - interval '60 seconds' as counted, sent.id is not null as has_order,
  exists (select 1 from gate_verdicts where id = asked.verdict_id) as recorded
from asked cross join desk
left join lateral (
  select horizon, model, as_of, id from forecast_heads
  where feed = desk.feed and ticker = asked.ticker
  order by horizon is distinct from asked.horizon, as_of desc, horizon, model limit 1
) as head on true
left join lateral (
  select close, cast(extract(epoch from desk.at - delivered_at) as float8) as age_s from bars
  where feed = desk.feed and ticker = asked.ticker order by as_of desc limit 1
) as price on true
left join authorisations own on own.client_order_id = asked.client_order_id
left join gate_verdicts told on told.client_order_id = asked.client_order_id and told.first
left join orders sent on sent.id = asked.order_id
order by asked.n
"""

# A forecast of a live feed ends; one of history that is replayed was written long after its end, and does not.
# The forecasts of these heads: $1 ids, $2 now. Their moments stand in the text, so that the plan, which is kept, leaves
# all other partitions alone; the forecasts of a tick share one.
READ_FORECASTS = """
select f.id as forecast_id, f.ticker as forecast_ticker, f.features #> '{llm,policy}' as policy,
  f.features #>> '{llm,inputs,signal,side}' as side,
  cast(extract(epoch from $2 - f.judged_at) as float8) as age_s,
  coalesce((f.feed like 'ccxt:%' or f.ts < cast(f.features ->> 'ends_at' as timestamptz))
    and $2 > cast(f.features ->> 'ends_at' as timestamptz), false) as past_due,
  used.client_order_id as used_by
from forecasts f left join authorisations used on used.forecast_id = f.id
where f.id = any($1::uuid[]) and f.as_of in ({moments})
"""

NO_FORECAST = dict.fromkeys(("forecast_id", "forecast_ticker", "policy", "side", "age_s", "past_due", "used_by"))

STORE = """
with verdicts as (
  insert into gate_verdicts (seq, id, at, key_name, strategy, client_order_id, intent, first, ticker, side, qty,
    ref_price, reduce_only, verdict, would_have, mode, reasons, forecast_id, feed, horizon, model, as_of,
    decision_age_s, prompt_version, arm, payload, hash)
  select seq, id, at, key_name, strategy, client_order_id, intent, first, ticker, side, qty, ref_price, reduce_only,
    verdict, would_have, mode, reasons, forecast_id, feed, horizon, model, as_of, decision_age_s, prompt_version, arm,
    payload, hash
  from jsonb_to_recordset($1::jsonb) as r (seq bigint, id uuid, at timestamptz, key_name text, strategy text,
    client_order_id text, intent text, first boolean, ticker text, side text, qty numeric, ref_price numeric,
    reduce_only boolean, verdict text, would_have text, mode text, reasons text[], forecast_id uuid, feed text,
    horizon text, model text, as_of timestamptz, decision_age_s float8, prompt_version text, arm text, payload text,
    hash text)
), authorised as (
  insert into authorisations (client_order_id, forecast_id, verdict_id, at)
  select client_order_id, forecast_id, verdict_id, at
  from jsonb_to_recordset($2::jsonb) as r (client_order_id text, forecast_id uuid, verdict_id uuid, at timestamptz)
)
insert into orders (id, origin, verdict_id, key_name, strategy, client_order_id, ticker, side, qty, limit_price, status,
  broker_id, reason)
select id, origin, verdict_id, key_name, strategy, client_order_id, ticker, side, qty, limit_price, status, broker_id,
  reason
from jsonb_to_recordset($3::jsonb) as r (id uuid, origin text, verdict_id uuid, key_name text, strategy text,
  client_order_id text, ticker text, side text, qty numeric, limit_price numeric, status text, broker_id text,
  reason text)
where broker_id is null or not exists (select 1 from orders known where known.broker_id = r.broker_id)
on conflict (id) do update set status = excluded.status, broker_id = excluded.broker_id, reason = excluded.reason,
  updated_at = now()
where orders.origin = 'exit' and orders.broker_id is null
"""

# Prepared once by name, so that it can go out in one message with what ends the transaction.
PREPARE = f"prepare gate_store (jsonb, jsonb, jsonb) as {STORE}"

# An exit's order that reconciliation met at the broker before its record was copied is ours after all.
CLAIM = """
update orders set origin = 'exit', verdict_id = r.verdict_id, key_name = r.key_name, strategy = r.strategy,
  client_order_id = r.client_order_id
from jsonb_to_recordset({orders}::jsonb) as r (verdict_id uuid, key_name text, strategy text, client_order_id text,
  broker_id text)
where orders.broker_id = r.broker_id and orders.origin = 'broker'
"""

GIVE_UP = """
update orders set status = 'not_sent', reason = 'its verdict came too late for its caller', updated_at = now()
where id = any($1::uuid[]) and status = 'submitting' and broker_id is null
"""

Row: TypeAlias = dict[str, Any]


class DeskConnection:
    """The desk's own connection, made when first needed and again after it broke."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._url = url.replace("postgresql+asyncpg://", "postgresql://", 1)
        self._timeout_s = timeout_s
        limit = f"{int(timeout_s * 1000)}ms"
        limited = ("idle_in_transaction_session_timeout", "statement_timeout", "lock_timeout")
        self._session = SESSION | dict.fromkeys(limited, limit)
        self._connection: Any = None

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator["DeskTransaction", None]:
        """One transaction behind the gate's lock, committed after the block; any failure drops the connection.

        Each statement may take `timeout_s`, and so may what lies between two of them: then the server ends it. Raises
        what asyncpg raises, `OSError`, `TimeoutError`.
        """
        timeout_s = self._timeout_s
        try:
            if self._connection is None or self._connection.is_closed():
                connect: Any = asyncpg.connect  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - untyped
                self._connection = await connect(self._url, timeout=timeout_s, server_settings=self._session)
                await self._connection.execute(PREPARE, timeout=timeout_s)
            await self._connection.execute(BEGIN, timeout=timeout_s)
            transaction = DeskTransaction(self._connection, timeout_s)
            yield transaction
            if not transaction.committed:
                await self._connection.execute("commit", timeout=timeout_s)
        except BaseException:
            self.drop()
            raise

    async def give_up(self, order_ids: Sequence[UUID]) -> None:
        """Say of orders whose callers were told that there is no verdict that nobody sends them."""
        await self._connection.execute(GIVE_UP, list(order_ids), timeout=self._timeout_s)

    def drop(self) -> None:
        """Let go of the connection at once; what it had not committed is undone by the server."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


class DeskTransaction:
    """What is read and written behind the lock."""

    def __init__(self, connection: Any, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self.committed = False

    async def read(
        self, orders: Sequence[Order], *, order_ids: Sequence[UUID], verdict_ids: Sequence[UUID | None]
    ) -> list[Row]:
        """A row per order, in their order. `verdict_ids` are those of verdicts told before, None for all others."""
        rows = await self._connection.fetch(
            READ,
            [order.client_order_id for order in orders],
            [order.ticker for order in orders],
            [order.horizon for order in orders],
            list(order_ids),
            list(verdict_ids),
            timeout=self._timeout_s,
        )
        heads = {row["head_id"]: row["as_of"] for row in rows if row["head_id"] is not None}
        found: list[Any] = []
        if heads:
            moments = ", ".join(f"'{moment.isoformat()}'::timestamptz" for moment in sorted(set(heads.values())))
            query = READ_FORECASTS.replace("{moments}", moments)
            found = await self._connection.fetch(query, list(heads), rows[0]["at"], timeout=self._timeout_s)
        forecasts = {row["forecast_id"]: dict(row) for row in found}
        return [{**row, **forecasts.get(row["head_id"], NO_FORECAST)} for row in rows]

    async def store(
        self,
        *,
        verdicts: Sequence[dict[str, Any]],
        authorisations: Sequence[dict[str, Any]],
        orders: Sequence[dict[str, Any]],
    ) -> None:
        """Write everything a transaction decided and commit, in one trip: trips are most of what a verdict costs."""
        documents = [json.dumps(rows, allow_nan=False) for rows in (verdicts, authorisations, orders)]
        statements = [f"execute gate_store ({', '.join(map(_literal, documents))})"]
        exits = [row for row in orders if row["origin"] == "exit" and row["broker_id"]]
        if exits:
            statements.append(CLAIM.format(orders=_literal(json.dumps(exits))))
        await self._connection.execute("; ".join([*statements, "commit"]), timeout=self._timeout_s)
        self.committed = True


def _literal(document: str) -> str:
    """JSON as a string of SQL. It is plain ASCII, so that a quote can only be a quote."""
    if not document.isascii():
        raise ValueError("only ASCII can be written as a literal")
    return "'" + document.replace("'", "''") + "'"
