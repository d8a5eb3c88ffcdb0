"""What the database knows of a version: the inputs it was asked with, and the replays that judged it."""

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

REPLAYED_KEYS = ("policy", "rationale")
"""The prompts whose stored decisions and answers can be put through another version."""

APPLICATION = "prompts"
LATELY_MIN = 10
"""Minutes of calls that are looked at."""
FOLLOWED_S = 10
"""Seconds after which every process follows a change, with room for the calls it had begun."""

# A retry sends the variables of the call before it once more, and a replay those of its original.
INPUTS = text(
    """
    select c.id as call_id, c.ts, b.inputs
    from llm_calls c join llm_bodies b on b.ts = c.ts and b.id = c.id
    where c.prompt_key = :key and b.inputs is not null and c.retry_of is null and c.replay_of is null
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

ASKED = text(
    """
    select prompt_version, count(*) as calls from llm_calls
    where ts > greatest(now() - :minutes * interval '1 minute', cast(:since as timestamptz))
      and prompt_key = :key and replay_of is null and retry_of is null
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
