"""The statements of a reconciliation. Each takes all its rows at once, as one JSON array."""

from sqlalchemy import text

FINAL = "('filled', 'canceled', 'expired', 'rejected', 'replaced', 'done_for_day', 'not_sent')"
"""What an order ends as; `orders_open` is an index on the others."""
DENIED = "the broker does not know it any more"


def rows_of(columns: str) -> str:
    """A table of the JSON array `:rows`, with these columns and their types."""
    return f"jsonb_to_recordset(cast(:rows as jsonb)) as r({columns})"


# Open orders are few among many; the planner does not know that until the table is analysed.
BY_INDEX_ONLY = text("set local enable_seqscan = off")

# From when on fills are read: a minute before the newest one, or an hour before the last reconciliation where that is
# later. Everything older was read then, also after a long time without us. A first reading looks two hours back.
GROUND = text(
    """
    select now() as begun, s.account, s.reconciled_at, coalesce(s.differences, '[]') as suspected,
      case when s.reconciled_at is null then now() - interval '2 hours'
        else greatest((select max(at) from fills) - interval '1 minute', s.reconciled_at - interval '1 hour')
      end as fills_from
    from (select) as always left join broker_state s on true
    """
)

# How pairs are written in orders. A position's last order may be years old; its row knows, and so do the forecasts'
# heads, one row a series. Of the orders only the latest are looked at.
SPELLED = text(
    """
    select ticker from positions where ticker like '%/%'
    union select ticker from forecast_heads where ticker like '%/%'
    union select ticker from (select ticker from orders order by created_at desc, id limit 1000) as lately
      where ticker like '%/%'
    """
)

# An exit that is tried again is on its way anew: updated_at says since when.
PENDING = text(
    f"""
    select id, origin, broker_id, ticker, status, created_at,
      cast(extract(epoch from now() - updated_at) as float8) as age_s
    from orders where status not in {FINAL} order by created_at, id
    """
)

# What another process wrote while we read; the lock keeps a third from writing between this and our commit.
LOCK = text("select pg_advisory_xact_lock(:lock)")
NOW_STORED = text(
    """
    select s.account, s.reconciled_at, cast(extract(epoch from now() - cast(:begun as timestamptz)) as float8) as age_s
    from (select) as always left join broker_state s on true
    """
)

# late: our record had given it up, and never with the broker's own word.
KNOWN = text(
    f"""
    select r.broker_id, coalesce(own.id, seen.id) as id,
      coalesce(own.broker_id is null and own.status in ('not_sent', 'rejected'), false)
        or coalesce(own.reason, seen.reason) = '{DENIED}' as late
    from {rows_of("id uuid, broker_id text")}
    left join orders own on own.id = r.id
    left join orders seen on seen.broker_id = r.broker_id
    where coalesce(own.id, seen.id) is not null
    """
)

STRANGERS = text(
    f"""
    select distinct r.broker_id from {rows_of("id text, broker_id text")}
    where not exists (select from fills f where f.id = r.id)
      and not exists (select from orders o where o.broker_id = r.broker_id)
    """
)

# A row that changed after the reading began knows better; it is read again next time. An order by amount of money has
# no quantity but what it filled.
UPDATE_ORDERS = text(
    f"""
    update orders o
    set status = r.status, filled_qty = r.filled_qty, filled_avg_price = r.filled_avg_price, broker_id = r.broker_id,
      qty = greatest(o.qty, r.qty),
      limit_price = case when not r.market then coalesce(o.limit_price, r.limit_price) end,
      reason = case when r.late then 'given up, and at the broker after all' else o.reason end, updated_at = now()
    from {
        rows_of(
            "id uuid, broker_id text, status text, qty numeric, filled_qty numeric, filled_avg_price numeric, "
            "limit_price numeric, market boolean, late boolean"
        )
    }
    where o.id = r.id and (o.broker_id is null or o.updated_at < :begun)
      and (o.status, o.filled_qty, o.filled_avg_price, o.broker_id, o.qty)
        is distinct from (r.status, r.filled_qty, r.filled_avg_price, r.broker_id, greatest(o.qty, r.qty))
    returning o.id
    """
)

INSERT_ORDERS = text(
    f"""
    insert into orders (id, origin, client_order_id, ticker, side, qty, limit_price, status, broker_id, filled_qty,
      filled_avg_price, reason, created_at)
    select id, origin, client_order_id, ticker, side, qty, limit_price, status, broker_id, filled_qty,
      filled_avg_price, reason, created_at
    from {
        rows_of(
            "id uuid, origin text, client_order_id text, ticker text, side text, qty numeric, limit_price numeric, "
            "status text, broker_id text, filled_qty numeric, filled_avg_price numeric, reason text, "
            "created_at timestamptz"
        )
    }
    on conflict do nothing
    """
)

# Every text in the results of a panic exit's closing calls; the ids of its orders are among them.
OF_PANIC = """
    select distinct said #>> '{}' as broker_id
    from panic_journal j, jsonb_path_query(j.result, 'strict $.** ? (@.type() == "string")') as said
    where j.action like 'close%'
"""

PANIC_ORDERS = text(
    f"{OF_PANIC} and j.at > now() - interval '7 days' and said #>> '{{}}' = any(cast(:broker_ids as text[]))"
)

# Closing orders that were taken for a stranger's before the journal of their panic exit was copied.
CLAIM_PANIC = text(
    f"""
    update orders o set origin = 'panic', reason = '', updated_at = now()
    from ({OF_PANIC} and j.copied_at > now() - interval '10 minutes') as said
    where o.broker_id = said.broker_id and o.origin = 'broker'
    """
)

NOT_SENT = text(
    """
    update orders set status = 'not_sent', reason = 'the broker never got it', updated_at = now()
    where id = any(cast(:ids as uuid[])) and status = 'submitting' and updated_at < :begun
    returning id
    """
)
GIVE_UP_MISSING = text(
    f"""
    update orders set status = 'canceled', reason = '{DENIED}', updated_at = now()
    where id = any(cast(:ids as uuid[])) and status not in {FINAL} and updated_at < :begun
    """
)

# Fills of an order nobody knows are left out until the order is settled, so that each fill counts once, when stored.
INSERT_FILLS = text(
    f"""
    insert into fills (id, broker_id, ticker, side, qty, price, at)
    select r.id, r.broker_id, coalesce(o.ticker, r.ticker), r.side, r.qty, r.price, r.at
    from {rows_of("id text, broker_id text, ticker text, side text, qty numeric, price numeric, at timestamptz")}
    left join orders o on o.broker_id = r.broker_id
    where o.id is not null or :all
    on conflict (id) do nothing
    returning ticker, side, qty, at
    """
)

EXPECTED = text("select ticker, expected_qty from positions")

UPSERT_POSITIONS = text(
    f"""
    insert into positions (ticker, qty, avg_entry_price, market_price, expected_qty, reconciled_at)
    select ticker, qty, avg_entry_price, market_price, expected_qty, :begun
    from {rows_of("ticker text, qty numeric, avg_entry_price numeric, market_price numeric, expected_qty numeric")}
    on conflict (ticker) do update set qty = excluded.qty, avg_entry_price = excluded.avg_entry_price,
      market_price = excluded.market_price, expected_qty = excluded.expected_qty, reconciled_at = excluded.reconciled_at
    """
)
DROP_POSITIONS = text("delete from positions where ticker <> all(cast(:tickers as text[]))")

UPSERT_STATE = text(
    """
    insert into broker_state (account, equity, last_equity, market_open, differences, reconciled_at)
    values (:account, :equity, :last_equity, :market_open, cast(:suspected as jsonb), :begun)
    on conflict (one) do update set account = excluded.account, equity = excluded.equity,
      last_equity = excluded.last_equity, market_open = excluded.market_open, differences = excluded.differences,
      reconciled_at = excluded.reconciled_at
    """
)

# The same words again within the hour are no news: two processes on different accounts would else say so every round.
INSERT_DIFFERENCES = text(
    f"""
    insert into differences (kind, subject, detail) select kind, subject, detail
    from {rows_of("kind text, subject text, detail text")}
    where not exists (
      select from (select * from differences order by id desc limit 1000) as lately
      where (lately.kind, lately.subject, lately.detail) = (r.kind, r.subject, r.detail)
        and lately.at > now() - interval '1 hour'
    )
    returning id, kind, subject, detail
    """
)
