-- Partitions are made when first needed (ensure_partition) and dropped whole (retention).
-- forecasts are cut by market month, calls and bodies by day.

create function ensure_partition(parent text, unit text, moment timestamptz) returns text
language plpgsql as $$
declare
  lower_bound timestamptz := date_trunc(unit, moment, 'UTC');
  upper_bound timestamptz := lower_bound + ('1 ' || unit)::interval;
  child text := parent || '_' || to_char(lower_bound at time zone 'UTC', case unit when 'day' then 'YYYYMMDD' else 'YYYYMM' end);
begin
  if to_regclass(child) is null then
    perform pg_advisory_xact_lock(hashtext(child));
    if to_regclass(child) is null then
      execute format('create table %I partition of %I for values from (%L) to (%L)', child, parent, lower_bound, upper_bound);
    end if;
  end if;
  return child;
end $$
--;;

-- One row per bar as a feed delivered it. as_of is the bar's end in market time.
create table bars (
  feed text not null, ticker text not null, as_of timestamptz not null,
  open double precision not null, high double precision not null, low double precision not null,
  close double precision not null, volume double precision not null,
  delivered_at timestamptz not null default now(),
  primary key (feed, ticker, as_of)
)
--;;

-- What a run of a feed is called (replay:1, replay:2, file:prices.csv) and how far it came. The feed with the newest
-- last_write_at is the one that "latest" means; it is null until the run's first forecasts are written.
create table feeds (
  feed text primary key, source text not null, last_as_of timestamptz, done boolean not null default false,
  started_at timestamptz not null default now(), last_write_at timestamptz
)
--;;

create table facts (
  ticker text not null, name text not null, as_of timestamptz not null, source text not null, external_id text not null,
  value jsonb not null, ts timestamptz not null default now(),
  primary key (source, external_id)
)
--;;
create index facts_latest on facts (ticker, name, as_of desc)
--;;

create table social_messages (
  source text not null, external_id text not null, ticker text not null, ts timestamptz not null,
  handle text not null, text text not null, ingested_at timestamptz not null default now(),
  primary key (source, external_id)
)
--;;
create index social_messages_recent on social_messages (ticker, ts desc)
--;;

create table analyst_ratings (
  source text not null, external_id text not null, ticker text not null, ts timestamptz not null,
  provider text not null, firm text not null, analyst text not null, action text not null,
  rating text not null, target double precision, ingested_at timestamptz not null default now(),
  primary key (source, external_id)
)
--;;
create index analyst_ratings_recent on analyst_ratings (ticker, ts desc)
--;;

-- The numbers exist whatever the model does; features->'llm' says what the model and the rules made of them.
create table forecasts (
  feed text not null, ticker text not null, horizon text not null, model text not null, as_of timestamptz not null,
  id uuid not null, due_at timestamptz,
  last_price double precision not null, mean double precision not null,
  lower double precision not null, upper double precision not null,
  features jsonb not null default '{}'::jsonb,
  ts timestamptz not null default now(), judged_at timestamptz,
  primary key (feed, ticker, horizon, model, as_of)
) partition by range (as_of)
--;;
create unique index forecasts_id on forecasts (id, as_of)
--;;

-- The newest forecast of each series: one row to read for a signal, however long the history is.
create table forecast_heads (
  feed text not null, ticker text not null, horizon text not null, model text not null,
  as_of timestamptz not null, id uuid not null,
  primary key (feed, ticker, horizon, model)
)
--;;

create table outcomes (
  feed text not null, ticker text not null, horizon text not null, model text not null, as_of timestamptz not null,
  forecast_id uuid not null, realised_as_of timestamptz not null,
  last_price double precision not null, realised_price double precision not null,
  realised_return double precision not null, inside boolean not null, ts timestamptz not null default now(),
  primary key (feed, ticker, horizon, model, as_of)
)
--;;

-- One narrow row per call, whatever came of it. id is a UUIDv7 whose time is ts, so an id alone finds its partition.
create table llm_calls (
  ts timestamptz not null, id uuid not null, service text not null,
  prompt_key text not null, prompt_version text not null, prompt_hash text not null, arm text not null default '',
  upstream text not null, model text not null, subject text not null default '',
  success boolean not null, status text not null, error text, cached boolean not null default false,
  attempts smallint not null default 0, repaired boolean not null default false, retry_of uuid,
  queue_ms real not null default 0, connect_ms real not null default 0, first_token_ms real not null default 0,
  total_ms real not null default 0, tokens_in integer not null default 0, tokens_out integer not null default 0,
  finish_reason text not null default '',
  primary key (ts, id)
) partition by range (ts)
--;;
create index llm_calls_page on llm_calls (id desc)
--;;

-- What was sent and what came back. inputs are the variables of the prompt, for replays.
create table llm_bodies (
  ts timestamptz not null, id uuid not null,
  messages jsonb not null, sampling jsonb not null, inputs jsonb, reply text not null,
  primary key (ts, id)
) partition by range (ts)
--;;

create table llm_cache (
  key text primary key, text text not null, finish_reason text not null, model text not null, upstream text not null,
  tokens_in integer not null, tokens_out integer not null, call_id uuid not null,
  created_at timestamptz not null default now(), expires_at timestamptz not null
)
--;;
create index llm_cache_expiry on llm_cache (expires_at)
--;;

-- What an operator may turn. The latest unexpired row of a name wins. env_value remembers what the environment said
-- when a start wrote the row, so that a mere restart changes nothing.
create table switches (
  id bigint generated always as identity primary key, name text not null, value boolean not null,
  set_by text not null, reason text not null, env_value boolean,
  set_at timestamptz not null default now(), expires_at timestamptz
)
--;;
create index switches_latest on switches (name, id desc)
--;;

-- Which prompt version is active, beyond the file. Appended by promote, rollback and guardrails; the latest row wins.
create table activations (
  id bigint generated always as identity primary key, key text not null, version text not null, arms jsonb,
  who text not null, why text not null, file_version text not null, file_experiment jsonb, env_arms text,
  at timestamptz not null default now()
)
--;;
create index activations_latest on activations (key, id desc)
