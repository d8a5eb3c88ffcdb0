"""What the database knows of a version: the inputs it was asked with, its batch replays and its evaluations."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.db.opening import open_database
from libs.llm.in_force import InForce
from libs.llm.types import PromptVersion

JUDGED_KEYS = ("policy", "rationale")
"""The prompts that are asked about forecasts: stored ones can be put through another version, and cases evaluated."""

APPLICATION = "prompts"
LATELY_MIN = 10
"""Minutes of calls that are looked at."""
FOLLOWED_S = 10
"""Seconds after which every process follows a change, with room for the calls it had begun."""

# Evaluations ask versions that nobody is given, about inputs that were never live. Workers ask as jobs do; what these
# ask otherwise are replays.
_LIVE = "replay_of is null and retry_of is null and service not in ('eval', 'jobs')"

# A retry sends the variables of the call before it once more, and a replay those of its original.
INPUTS = text(
    f"""
    select c.id as call_id, c.ts, b.inputs
    from llm_calls c join llm_bodies b on b.ts = c.ts and b.id = c.id
    where prompt_key = :key and b.inputs is not null and {_LIVE}
    order by c.id desc limit :most
    """
)

# A replay of nothing is no evidence.
REPLAY = text(
    """
    select id, finished_at, total, report ->> 'sentence' as sentence from replay_batches
    where prompt_key = :key and prompt_hash = :hash and state = 'done' and total > 0
    order by finished_at desc limit 1
    """
)

OPEN = text(
    """
    select id, state from replay_batches
    where prompt_key = :key and prompt_hash = :hash and state in ('queued', 'running')
    order by created_at desc limit 1
    """
)

# Of those that asked for something and got an answer, the one planned last; one that asked for nothing only where there
# is no other.
EVALUATION = text(
    """
    select e.id, e.name, e.finished_at, e.total, p.passed, coalesce(e.plan ->> 'rules_sha256', '') as rules_sha256,
      concat_ws(' ', e.plan #>> '{stamp,model,name}', e.plan #>> '{stamp,model,dialect}',
        coalesce(e.plan #>> '{stamp,model,server,version}', e.plan #>> '{stamp,model,server,model_file}')) as model,
      array(
        select jsonb_path_query(
          p.thresholds, '$[*] ? (@.passed == $passed).sentence', jsonb_build_object('passed', p.passed)
        ) #>> '{}'
      ) as sentences
    from evaluation_prompts p join evaluations e on e.id = p.evaluation_id
    where p.prompt_key = :key and p.prompt_hash = :hash and e.state = 'done' and e.total > 0
    order by p.passed is null, e.made_at desc, e.created_at desc, e.id desc, p.prompt_version desc limit 1
    """
)

OPEN_EVALUATION = text(
    """
    select e.id from evaluation_prompts p join evaluations e on e.id = p.evaluation_id
    where p.prompt_key = :key and p.prompt_hash = :hash and e.state = 'running'
    order by e.made_at desc limit 1
    """
)

ASKED = text(
    f"""
    select prompt_version, count(*) as calls from llm_calls
    where ts > greatest(now() - :minutes * interval '1 minute', cast(:since as timestamptz))
      and prompt_key = :key and {_LIVE}
    group by prompt_version order by prompt_version
    """
)


@dataclass(frozen=True, slots=True)
class StoredInputs:
    """The variables of a recorded call."""

    call_id: UUID
    ts: datetime
    inputs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FinishedReplay:
    """A batch replay that came to its end. `sentence` is what its report says, empty where it says none."""

    id: UUID
    finished_at: datetime
    total: int
    sentence: str

    def __str__(self) -> str:
        """The replay in a line, for people and for the record."""
        words = f": {self.sentence}" if self.sentence else ""
        return f"replay {self.id} of {self.total} decisions, {self.finished_at:%Y-%m-%d %H:%M} UTC{words}"


@dataclass(frozen=True, slots=True)
class FinishedEvaluation:
    """An offline evaluation that came to its end, and what it found of one version.

    `model` names who answered, empty where the plan does not say. `passed` is None where it asked for no threshold.
    `sentences` are those of the thresholds that were met, or, where it did not pass, of those that were missed.
    `rules_sha256` is of the rules it judged by, empty where the plan does not say.
    """

    id: UUID
    name: str
    finished_at: datetime
    total: int
    model: str
    passed: bool | None
    sentences: tuple[str, ...]
    rules_sha256: str = ""

    def __str__(self) -> str:
        """The evaluation in a line, for people and for the record."""
        ended = {True: "passed", False: "missed a threshold", None: "asked for no threshold"}[self.passed]
        words = f": {'; '.join(self.sentences)}" if self.sentences else ""
        asked = f"{self.total} items asked of {self.model or 'an unknown model'}"
        of = f"{self.name}, {asked}, {self.finished_at:%Y-%m-%d %H:%M} UTC"
        return f"evaluation {self.id} ({of}) {ended}{words}"


async def stored_inputs(key: str, *, most: int) -> list[StoredInputs]:
    """The variables of the latest calls of a key, newest first. Raises what a database out of reach raises."""
    async with open_database(application=APPLICATION, pool_size=1) as engine, engine.connect() as connection:
        found = await connection.execute(INPUTS, {"key": key, "most": most})
        return [StoredInputs(**row) for row in found.mappings()]


async def finished_replay(connection: AsyncConnection, prompt: PromptVersion) -> FinishedReplay | None:
    """The latest finished batch replay of exactly this content, if there is one."""
    row = (await connection.execute(REPLAY, {"key": prompt.key, "hash": prompt.sha256})).mappings().first()
    return None if row is None else FinishedReplay(row["id"], row["finished_at"], row["total"], row["sentence"] or "")


async def open_replay(connection: AsyncConnection, prompt: PromptVersion) -> UUID | None:
    """A batch replay of this content that waits or runs."""
    return await connection.scalar(OPEN, {"key": prompt.key, "hash": prompt.sha256})


async def finished_evaluation(connection: AsyncConnection, prompt: PromptVersion) -> FinishedEvaluation | None:
    """The latest finished evaluation of exactly this content, if there is one; those with thresholds come first."""
    row = (await connection.execute(EVALUATION, {"key": prompt.key, "hash": prompt.sha256})).mappings().first()
    if row is None:
        return None
    return FinishedEvaluation(
        id=row["id"],
        name=row["name"],
        finished_at=row["finished_at"],
        total=row["total"],
        model=row["model"],
        passed=row["passed"],
        sentences=tuple(row["sentences"]),
        rules_sha256=row["rules_sha256"],
    )


async def open_evaluation(connection: AsyncConnection, prompt: PromptVersion) -> UUID | None:
    """An evaluation of this content that has begun and not ended."""
    return await connection.scalar(OPEN_EVALUATION, {"key": prompt.key, "hash": prompt.sha256})


async def asked_lately(
    connection: AsyncConnection, key: str, *, minutes: int, since: datetime | None = None
) -> dict[str, int]:
    """How often each version was asked within the last minutes, and after `since`, by any process."""
    found = await connection.execute(ASKED, {"key": key, "minutes": minutes, "since": since})
    return {row.prompt_version: row.calls for row in found}


async def strangers(connection: AsyncConnection, key: str, found: InForce) -> dict[str, int]:
    """The versions asked lately that nobody is given by `found`, with how often: what the services go by differs."""
    ruling = found.activation if found.source == "activation" else None
    changed_at = None if ruling is None else ruling.at + timedelta(seconds=FOLLOWED_S)
    asked = await asked_lately(connection, key, minutes=LATELY_MIN, since=changed_at)
    given = {found.version, *dict(() if found.experiment is None else found.experiment.arms)}
    return {version: calls for version, calls in asked.items() if version not in given}
