-- caller is the name of the key, empty for calls of the house's own. request_id is the X-Request-Id of the answer.
-- http_status is what the caller was answered with; null where no HTTP was spoken.
alter table llm_calls
  add column caller text not null default '',
  add column request_id text not null default '',
  add column http_status smallint,
  add column streamed boolean not null default false
--;;

-- The gateway's callers may make a thousand calls for each of the house's own. Each kind has a page index of its own,
-- so that neither a rare caller nor a rare prompt is looked for among the calls of the others; a row pays for one.
create index llm_calls_caller on llm_calls (caller, id desc) where caller <> ''
--;;
create index llm_calls_own on llm_calls (id desc) where caller = ''
