"""The SQL of a verdict's transaction."""

# Everything that permits an entry is read and written behind this lock, so that no two verdicts of any process rest on
# the same state. A verdict is only told once it is on disk.
BEGIN = "begin; select pg_advisory_xact_lock(hashtext('gate'))"

# The reads are planned once and by key. Each key is looked up in a subquery of its own: a join may be planned as a walk
# through the table, which is cheap on the first day, when nothing is in it, and dearer every day.
SESSION = {
    "application_name": "lexi-api-gate",
    "timezone": "UTC",
    "jit": "off",
    "synchronous_commit": "on",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "plan_cache_mode": "force_generic_plan",
    "default_transaction_isolation": "read committed",
    "standard_conforming_strings": "on",  # `literal` rests on it
    # Whoever holds the lock and freezes, or is cut off, must not stop every entry of the house for long.
    "client_connection_check_interval": "1s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}

FEW = 256
FINAL = "('filled', 'canceled', 'expired', 'rejected', 'replaced', 'done_for_day', 'not_sent')"

# What holds for every order of the transaction (in the first row alone), and what holds for each; $1 order ids as the
# callers gave them, $2 tickers, $3 horizons (null: whatever is forecast), $4 ids of the orders themselves, $5 of
# verdicts that were told already, $6 how far to count the last minute's entries.
# clock_timestamp(), since a transaction that waited for the lock must not see a switch or an age of before. It is asked
# once: no index can be searched by a function whose answer changes.
# An open order is worth its limit, else our last price; one without either leaves the limits no ground (NaN).
# A forecast of a live feed ends; one of history that is replayed was written long after its end, and does not.
# The last minute's entries are those authorised in it, and those sent in it that were authorised before. From {FEW} on,
# the verdicts of that minute, which their own numbers count, stand for the first as long as these leave room for all
# that are asked now: one by one, thousands would take longer than all the rest.
# {months} stands in the text, so that the plan, which is kept, leaves all other partitions alone.
READ = f"""
with asked as (
  select * from unnest($1::text[], $2::text[], $3::text[], $4::uuid[], $5::uuid[])
    with ordinality as a (client_order_id, ticker, horizon, order_id, verdict_id, n)
), clock as materialized (
  select at, at - interval '60 seconds' as minute_ago,
    (select feed from feeds order by last_write_at desc nulls last limit 1) as feed
  from (select clock_timestamp() as at offset 0) as now
), desk as materialized (
  select
    (select value from switches where name = 'ORDER_GATE_DISABLED' and (expires_at is null or expires_at > clock.at)
      order by id desc limit 1) as gate_disabled,
    (select value from switches where name = 'LLM_SHADOW_MODE' and (expires_at is null or expires_at > clock.at)
      order by id desc limit 1) as shadow,
    exists (select 1 from halts where rearmed_at is null) as halted,
    sent_later.n + case
      when few.n < least($6, {FEW}) then few.n
      when verdicts.n + sent_later.n + cardinality($1) < $6 then verdicts.n
      else (select count(*) from (select 1 from authorisations where at > clock.minute_ago limit $6) as all_of_them)
    end as orders_last_minute,
    head.seq as head_seq, head.hash as head_hash,
    broker.account, broker.last_equity - broker.equity as lost_today,
    cast(extract(epoch from clock.at - broker.reconciled_at) as float8) as account_age_s,
    (select json_agg(json_build_array(ticker, qty::text, market_price::text)) from positions) as positions,
    (select json_agg(json_build_array(ticker, buying::text, selling::text, price::text)) from (
      select ticker, coalesce(sum(rest) filter (where side = 'buy'), 0) as buying,
        coalesce(sum(rest) filter (where side = 'sell'), 0) as selling, max(price) as price
      from (
        select ticker, side, greatest(qty - filled_qty, 0) as rest,
          coalesce(limit_price, (select cast(close as numeric) from bars where feed = clock.feed
            and ticker = orders.ticker order by as_of desc limit 1), filled_avg_price, 'NaN') as price
        from orders where status not in {FINAL}
      ) as each group by ticker
    ) as open) as open_orders
  from clock
    left join lateral (select seq, hash from gate_verdicts order by seq desc limit 1) as head on true
    left join lateral (select * from broker_state where one limit 1) as broker on true
    cross join lateral (
      select count(*) as n from (
        select 1 from authorisations where at > clock.minute_ago limit least($6, {FEW})) as authorised
    ) as few
    cross join lateral (
      select count(*) as n from (
        select 1 from orders where origin = 'entry' and created_at > clock.minute_ago and coalesce(
          (select at from authorisations where client_order_id = orders.client_order_id) <= clock.minute_ago, true)
        limit $6) as entries
    ) as sent_later
    cross join lateral (
      select head.seq - coalesce(
        (select seq from gate_verdicts where at <= clock.minute_ago order by at desc limit 1), 0) as n
    ) as verdicts
)
select clock.at, clock.feed, desk.*,
  head.horizon as forecast_horizon, head.model, head.as_of, forecast.*,
  (select client_order_id from authorisations where forecast_id = forecast.forecast_id) as used_by,
  price.close as last_price, price.age_s as price_age_s,
  told.id as told_id, told.at as told_at, told.intent as told_intent, told.verdict as told_verdict,
  told.would_have as told_would_have, told.mode as told_mode, told.reasons as told_reasons,
  told.forecast_id as told_forecast_id, told.decision_age_s as told_decision_age_s,
  (select at from authorisations where client_order_id = asked.client_order_id) > clock.minute_ago as counted,
  (select id from orders where id = asked.order_id) is not null as has_order,
  (select id from gate_verdicts where id = asked.verdict_id) is not null as recorded
from asked cross join clock left join desk on asked.n = 1
left join lateral (
  select horizon, model, as_of, id from forecast_heads
  where feed = clock.feed and ticker = asked.ticker
  order by horizon is distinct from asked.horizon, as_of desc, horizon, model limit 1
) as head on true
left join lateral (
  select f.id as forecast_id, f.ticker as forecast_ticker, said.llm -> 'policy' as policy,
    said.llm #>> '{{inputs,signal,side}}' as side, cast(extract(epoch from clock.at - f.judged_at) as float8) as age_s,
    coalesce((f.feed like 'ccxt:%' or f.ts < said.ends_at) and clock.at > said.ends_at, false) as past_due
  from forecasts f, lateral (
    select f.features -> 'llm' as llm, cast(f.features ->> 'ends_at' as timestamptz) as ends_at offset 0
  ) as said
  where f.id = head.id and f.as_of = head.as_of and ({{months}}) limit 1
) as forecast on true
left join lateral (
  select close, cast(extract(epoch from clock.at - delivered_at) as float8) as age_s from bars
  where feed = clock.feed and ticker = asked.ticker order by as_of desc limit 1
) as price on true
left join lateral (
  select * from gate_verdicts where client_order_id = asked.client_order_id and first limit 1
) as told on true
order by asked.n
"""

STORE = """
with verdicts as (
  insert into gate_verdicts (seq, id, at, key_name, strategy, client_order_id, intent, first, ticker, side, qty,
    ref_price, reduce_only, verdict, would_have, mode, reasons, forecast_id, feed, horizon, model, as_of,
    decision_age_s, prompt_version, arm, payload, hash)
  select seq, id, at, key_name, strategy, client_order_id, intent, first, ticker, side, qty, ref_price, reduce_only,
    verdict, would_have, mode, reasons, forecast_id, feed, horizon, model, as_of, decision_age_s, prompt_version, arm,
    payload, hash
  from json_to_recordset($1) as r (seq bigint, id uuid, at timestamptz, key_name text, strategy text,
    client_order_id text, intent text, first boolean, ticker text, side text, qty numeric, ref_price numeric,
    reduce_only boolean, verdict text, would_have text, mode text, reasons text[], forecast_id uuid, feed text,
    horizon text, model text, as_of timestamptz, decision_age_s float8, prompt_version text, arm text, payload text,
    hash text)
), authorised as (
  insert into authorisations (client_order_id, forecast_id, verdict_id, at)
  select client_order_id, forecast_id, verdict_id, at
  from json_to_recordset($2) as r (client_order_id text, forecast_id uuid, verdict_id uuid, at timestamptz)
)
insert into orders (id, origin, verdict_id, key_name, strategy, client_order_id, ticker, side, qty, limit_price, status,
  broker_id, reason)
select id, origin, verdict_id, key_name, strategy, client_order_id, ticker, side, qty, limit_price, status, broker_id,
  reason
from json_to_recordset($3) as r (id uuid, origin text, verdict_id uuid, key_name text, strategy text,
  client_order_id text, ticker text, side text, qty numeric, limit_price numeric, status text, broker_id text,
  reason text)
where broker_id is null or not exists (select 1 from orders known where known.broker_id = r.broker_id)
on conflict (id) do update set status = excluded.status, broker_id = excluded.broker_id, reason = excluded.reason,
  updated_at = now()
where orders.origin = 'exit' and orders.broker_id is null
"""

# Prepared once by name, so that it can go out in one message with what ends the transaction.
PREPARE = f"prepare gate_store (json, json, json) as {STORE}"

# An exit's order that reconciliation met at the broker before its record was copied is ours after all.
CLAIM = """
update orders set origin = 'exit', verdict_id = r.verdict_id, key_name = r.key_name, strategy = r.strategy,
  client_order_id = r.client_order_id
from json_to_recordset({orders}::json) as r (verdict_id uuid, key_name text, strategy text, client_order_id text,
  broker_id text)
where orders.broker_id = r.broker_id and orders.origin = 'broker'
"""

GIVE_UP = """
update orders set status = 'not_sent', reason = 'its verdict came too late for its caller', updated_at = now()
where id = any($1::uuid[]) and status = 'submitting' and broker_id is null
"""


def literal(document: str) -> str:
    """JSON as a string of SQL. It is plain ASCII, so that a quote can only be a quote."""
    if not document.isascii():
        raise ValueError("only ASCII can be written as a literal")
    return "'" + document.replace("'", "''") + "'"
