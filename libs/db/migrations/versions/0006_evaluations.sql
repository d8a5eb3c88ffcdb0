-- An offline evaluation: what was planned, and once it has ended its figures and its report (HTML, gzipped). passed is
-- null where no threshold was asked. An evaluation that ran on one machine is written once, at its end. made_at is when
-- it was planned: of two, the later one counts, however late a result was registered.
create table evaluations (
  id uuid primary key, name text not null, asked_by text not null, plan jsonb not null, total integer not null,
  state text not null check (state in ('running', 'done', 'failed', 'cancelled')),
  passed boolean, summary jsonb, report bytea, error text,
  made_at timestamptz not null default now(), created_at timestamptz not null default now(), finished_at timestamptz
)
--;;
create index evaluations_by_age on evaluations (created_at desc)
--;;

-- The versions an evaluation judged, each with its own result: promotion asks for the content, not for the number.
create table evaluation_prompts (
  evaluation_id uuid not null references evaluations (id), prompt_key text not null, prompt_version text not null,
  prompt_hash text not null, passed boolean, thresholds jsonb not null default '[]'::jsonb,
  primary key (evaluation_id, prompt_key, prompt_version)
)
--;;
create index evaluation_prompts_by_content on evaluation_prompts (prompt_key, prompt_hash)
--;;

-- The work of an evaluation that is spread over workers: cases that one worker asks together, and the rows that came of
-- them. Both are only on the way to the results of who asked, and go once these have them. Of S shards, shard s holds
-- every S-th case from s on, as gzipped JSON lines; known are the items whose rows who asked had before. Rows are the
-- lines as they will stand in its file: JSON as text keeps what jsonb does not, such as a NUL that a model said.
-- taken counts how often a worker took the shard, and turn is the number of the last time: only who has it may go on. No
-- number comes twice, for a shard that is handed out anew may still have a worker from before. seen_at is a sign of life.
create sequence evaluation_turns
--;;
create table evaluation_shards (
  evaluation_id uuid not null references evaluations (id), shard integer not null, step integer not null,
  cases bytea not null, known integer[] not null default '{}',
  worker text, taken integer not null default 0, turn bigint, seen_at timestamptz, error text,
  handed_out_at timestamptz not null default now(), finished_at timestamptz,
  primary key (evaluation_id, shard)
)
--;;
create table evaluation_rows (
  evaluation_id uuid not null references evaluations (id), item integer not null, position bigint generated always as identity,
  shard integer not null, worker text not null, row text not null, at timestamptz not null default now(),
  primary key (evaluation_id, item)
)
--;;
create unique index evaluation_rows_in_order on evaluation_rows (evaluation_id, position)
