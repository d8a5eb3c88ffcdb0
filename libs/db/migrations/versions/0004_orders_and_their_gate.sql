-- What the gate told each order; never dropped, never changed. seq counts from 1 without a hole, and each row's hash
-- covers its payload and the hash before it (libs/trading/chain.py). The columns repeat the payload for queries.
-- first marks the verdict an order id got when it first came: the same order gets it again.
create table gate_verdicts (
  seq bigint primary key, id uuid not null unique, at timestamptz not null,
  key_name text not null, strategy text not null, client_order_id text not null, intent text not null,
  first boolean not null,
  ticker text not null, side text not null, qty numeric not null, ref_price numeric not null,
  reduce_only boolean not null,
  verdict text not null check (verdict in ('allow', 'deny')),
  would_have text not null check (would_have in ('allow', 'deny')),
  mode text not null check (mode in ('enforce', 'shadow', 'disabled')),
  reasons text[] not null,
  forecast_id uuid, feed text, horizon text, model text, as_of timestamptz, decision_age_s double precision,
  prompt_version text, arm text,
  payload text not null, hash text not null
)
--;;
create unique index gate_verdicts_first on gate_verdicts (client_order_id) where first
--;;
create index gate_verdicts_ticker on gate_verdicts (ticker, seq desc)
--;;
create index gate_verdicts_at on gate_verdicts (at)
--;;

-- One forecast authorises one entry and is bound to its order id. forecast_id is null where no forecast stood behind an
-- entry that was let through all the same (shadow, kill switch).
create table authorisations (
  client_order_id text primary key, forecast_id uuid unique, verdict_id uuid not null unique,
  at timestamptz not null
)
--;;
create index authorisations_at on authorisations (at)
--;;

-- id is derived from the intent, and the broker knows the order as 'lexi-' and its hex digits, so that no order is sent
-- twice. origin: entry and exit are the house's own, panic came from a panic exit, broker from somebody else.
-- status: submitting (on its way, or nobody knows), not_sent (never arrived), else the broker's word.
create table orders (
  id uuid primary key, origin text not null check (origin in ('entry', 'exit', 'panic', 'broker')),
  verdict_id uuid, key_name text not null default '', strategy text not null default '',
  client_order_id text not null default '',
  ticker text not null, side text not null, qty numeric not null, limit_price numeric,
  status text not null, broker_id text unique, reason text not null default '',
  filled_qty numeric not null default 0, filled_avg_price numeric,
  created_at timestamptz not null default now(), updated_at timestamptz not null default now()
)
--;;
create index orders_page on orders (created_at desc, id)
--;;
create index orders_open on orders (ticker) where status not in
  ('filled', 'canceled', 'expired', 'rejected', 'replaced', 'done_for_day', 'not_sent')
--;;

create table fills (
  id text primary key, broker_id text not null, ticker text not null, side text not null,
  qty numeric not null, price numeric not null, at timestamptz not null, stored_at timestamptz not null default now()
)
--;;
create index fills_page on fills (at desc, id)
--;;

-- The broker's positions as last read. expected_qty is what our record of orders says the position should be.
create table positions (
  ticker text primary key, qty numeric not null, avg_entry_price numeric not null, market_price numeric not null,
  expected_qty numeric not null, reconciled_at timestamptz not null
)
--;;

-- One row: the broker as last read. account names the broker and its account, so that another one is noticed.
create table broker_state (
  one boolean primary key default true check (one), account text not null,
  equity numeric not null, last_equity numeric not null, market_open boolean not null,
  differences jsonb not null default '[]'::jsonb, reconciled_at timestamptz not null
)
--;;

-- Where our record and the broker's differed, each difference once.
create table differences (
  id bigint generated always as identity primary key, at timestamptz not null default now(),
  kind text not null, subject text not null, detail text not null
)
--;;

-- The latch that stops entries. Open until a person re-arms. id is the one in the halt file.
create table halts (
  id uuid primary key, reason text not null, halted_at timestamptz not null, halted_until timestamptz not null,
  opened_at timestamptz not null default now(),
  rearmed_at timestamptz, rearmed_by text, rearm_reason text
)
--;;
create index halts_open on halts (halted_at) where rearmed_at is null
--;;

-- The panic exits' local journals, copied: row seq of exit_id as its process wrote it, with its chain.
create table panic_journal (
  exit_id uuid not null, seq integer not null, at timestamptz not null, action text not null,
  result jsonb not null, hash text not null, copied_at timestamptz not null default now(),
  primary key (exit_id, seq)
)
--;;

-- What the desk must hear of, written with the event itself and sent by any of the jobs. key makes each event one alert.
create table alerts (
  id bigint generated always as identity primary key, key text not null unique,
  kind text not null, text text not null, at timestamptz not null default now(),
  sent_at timestamptz, attempts integer not null default 0, error text
)
--;;
create index alerts_waiting on alerts (id) where sent_at is null
