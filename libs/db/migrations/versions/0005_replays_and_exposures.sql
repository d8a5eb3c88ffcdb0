-- A call that asks again what another call asked points at that one; null for all others.
alter table llm_calls add column replay_of uuid
--;;

-- Decisions are looked for by when they were written. Rows come in that order, so a range per block is all it takes.
create index forecasts_written on forecasts using brin (ts)
--;;

-- A what-if over a period: every stored decision of it through one version. report is null until it has ended. done
-- and failed count its rows in replays, and change with them.
create table replay_batches (
  id uuid primary key, prompt_key text not null, prompt_version text not null, prompt_hash text not null,
  since timestamptz not null, until timestamptz not null, most integer not null, asked_by text not null,
  state text not null default 'queued' check (state in ('queued', 'running', 'done', 'failed', 'cancelled')),
  total integer, done integer not null default 0, failed integer not null default 0, error text, report jsonb,
  created_at timestamptz not null default now(), started_at timestamptz, finished_at timestamptz
)
--;;
create index replay_batches_open on replay_batches (created_at) where state in ('queued', 'running')
--;;
create index replay_batches_of_version on replay_batches (prompt_key, prompt_hash) where state = 'done'
--;;

-- One decision or answer, recorded or asked again; it points at its original and changes nothing of it. before and
-- after hold {text, value, decision, rules, allow}; flip says which way the decision turned.
create table replays (
  id uuid primary key, batch_id uuid references replay_batches (id), call_id uuid, forecast_id uuid, as_of timestamptz,
  ticker text, prompt_key text not null, prompt_version text not null, prompt_hash text not null,
  source text not null check (source in ('recorded', 'model')), new_call_id uuid,
  status text not null, error text, before jsonb not null, after jsonb not null,
  flip text check (flip in ('deny_to_allow', 'allow_to_deny')),
  total_ms real not null default 0, tokens_in integer not null default 0, tokens_out integer not null default 0,
  asked_by text not null default '', at timestamptz not null default now()
)
--;;
create index replays_of_call on replays (call_id, prompt_version, at desc) where batch_id is null
--;;
create unique index replays_of_batch on replays (batch_id, forecast_id) where batch_id is not null
--;;
-- For the pace of a batch.
create index replays_lately on replays (batch_id, at) where batch_id is not null
--;;

-- A forecast that an experiment gave an arm. Written with the forecast's numbers, before anything is asked, so that
-- nothing the arm does can keep it out of the count. The rest is filled in once each: by the first judgement, and by
-- the outcome. phase is the stretch of the experiment with unchanged arms and weights.
create table exposures (
  key text not null, forecast_id uuid not null, phase text not null, unit text not null, arm text not null,
  feed text not null, ticker text not null, horizon text not null, as_of timestamptz not null, side text not null,
  assigned_at timestamptz not null default now(),
  judged_at timestamptz, call_id uuid, status text, timed_out boolean, cached boolean,
  total_ms real, tokens integer, allow boolean, rules_allow boolean,
  realised_return double precision, settled_at timestamptz,
  primary key (forecast_id, key)
) with (fillfactor = 75)
--;;
create index exposures_of_phase on exposures (key, phase)
--;;
-- What was assigned lately, in phases that nobody here knows of.
create index exposures_assigned on exposures using brin (assigned_at)
