-- Reports that people look at again and again, made by a job and read by the console: the newest of each name.
create table reports (
  name text primary key, content jsonb not null, made_at timestamptz not null default now(),
  took_ms real not null
)
--;;

-- What somebody pressed in the console, and what came of it. Never changed.
create table presses (
  id bigint generated always as identity primary key, at timestamptz not null default now(),
  key_name text not null, action text not null, subject text not null default '', reason text not null default '',
  outcome text not null
)
