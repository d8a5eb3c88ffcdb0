"""The register of evaluations, for people and for promotion: what was judged, whether it passed, figures and report.

The file of rows stays where the evaluation was asked for. Here is what others need to know of it.
"""

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias
from uuid import UUID

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.evaluation.running.plan import Pinned, Plan
from libs.llm.call_record import json_text, storable_text

EvaluationState: TypeAlias = Literal["running", "done", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Judged:
    """One version that an evaluation judged. `passed` is None where no threshold spoke of it."""

    key: str
    version: str
    hash: str
    passed: bool | None


@dataclass(frozen=True, slots=True)
class Registered:
    """An evaluation as the register shows it. `total` counts its items; `error` says why it failed, where it did."""

    id: UUID
    name: str
    asked_by: str
    state: EvaluationState
    passed: bool | None
    total: int
    error: str | None
    created_at: datetime
    finished_at: datetime | None
    prompts: tuple[Judged, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the latest evaluation of one content of a prompt came to.

    `passed` and `thresholds` are those of this content: others of the same evaluation may have failed. A threshold is
    an entry of the summary's, `asked` and `sentence` among its fields. Only where `state` is "done" is it finished.
    """

    id: UUID
    name: str
    asked_by: str
    state: EvaluationState
    version: str
    passed: bool | None
    thresholds: Sequence[Mapping[str, Any]]
    error: str | None
    created_at: datetime
    finished_at: datetime | None


# An evaluation that is spread over workers stands there already, as running; one that is resumed or reported again is
# written again, and ended when it first did. A clock that is fast must not make it the newest for ever.
REGISTER = text(
    """
    insert into evaluations as e
      (id, name, asked_by, plan, made_at, total, state, passed, summary, report, error, finished_at)
    values (:id, :name, :asked_by, cast(:plan as jsonb), least(:made_at, now()), :total, :state, :passed,
      cast(:summary as jsonb), :report, :error, now())
    on conflict (id) do update set state = excluded.state, passed = excluded.passed, summary = excluded.summary,
      report = excluded.report, error = excluded.error,
      finished_at = case when e.state = 'done' then e.finished_at else excluded.finished_at end
    where excluded.state = 'done' or e.state <> 'running'
    returning e.id
    """
)
JUDGED = text(
    """
    insert into evaluation_prompts (evaluation_id, prompt_key, prompt_version, prompt_hash, passed, thresholds)
    values (:id, :key, :version, :hash, :passed, cast(:thresholds as jsonb))
    on conflict (evaluation_id, prompt_key, prompt_version) do update
      set passed = excluded.passed, thresholds = excluded.thresholds
    """
)
FORGET_ROWS = text("delete from evaluation_rows where evaluation_id = :id")
FORGET_SHARDS = text("delete from evaluation_shards where evaluation_id = :id")

HISTORY = text(
    """
    select e.id, e.name, e.asked_by, e.state, e.passed, e.total, e.error, e.created_at, e.finished_at,
      coalesce((select jsonb_agg(jsonb_build_object('key', p.prompt_key, 'version', p.prompt_version,
        'hash', p.prompt_hash, 'passed', p.passed) order by p.prompt_key, p.prompt_version)
        from evaluation_prompts p where p.evaluation_id = e.id), '[]') as prompts
    from evaluations e order by e.created_at desc, e.id desc limit :limit
    """
)
LATEST = text(
    """
    select e.id, e.name, e.asked_by, e.state, p.prompt_version as version, p.passed, p.thresholds, e.error,
      e.created_at, e.finished_at
    from evaluation_prompts p join evaluations e on e.id = p.evaluation_id
    where p.prompt_key = :key and p.prompt_hash = :hash
    order by e.made_at desc, e.created_at desc, e.id desc, p.prompt_version desc limit 1
    """
)


async def register(
    connection: AsyncConnection,
    *,
    plan: Plan,
    summary: Mapping[str, Any],
    report_html: str,
    asked_by: str,
) -> EvaluationState:
    """Write down what an evaluation came to; returns the state it has now. The same again changes nothing.

    One that lacks rows counts as failed, and as passed it counts for nobody; where workers are still at it, it stays
    running instead, and nothing is written. What workers left on the way is deleted once the evaluation is done.
    """
    complete = bool(summary["run"]["complete"])
    missing = int(summary["run"]["missing"])
    error = None if complete else f"{missing} of {plan.items} items have no row; resume it"
    values = {
        "id": plan.evaluation_id,
        "name": storable_text(plan.name),
        "asked_by": storable_text(asked_by),
        "plan": json_text(plan.document()),
        "made_at": plan.made_at,
        "total": plan.items,
        "state": "done" if complete else "failed",
        "passed": summary["passed"] if complete else None,
        "summary": json_text(summary),
        "report": gzip.compress(report_html.encode(errors="replace"), mtime=0),
        "error": error,
    }
    if await connection.scalar(REGISTER, values) is None:
        return "running"
    for pinned in plan.versions:
        await connection.execute(JUDGED, {"id": plan.evaluation_id, **_judged(pinned, summary, complete=complete)})
    if not complete:
        return "failed"
    await forget(connection, plan.evaluation_id)
    return "done"


async def forget(connection: AsyncConnection, evaluation_id: UUID) -> None:
    """Delete an evaluation's work on its way; what is registered of it stays."""
    await connection.execute(FORGET_ROWS, {"id": evaluation_id})
    await connection.execute(FORGET_SHARDS, {"id": evaluation_id})


async def history(connection: AsyncConnection, *, limit: int = 20) -> list[Registered]:
    """The evaluations that were registered or handed to workers last, newest first."""
    found = await connection.execute(HISTORY, {"limit": limit})
    return [_registered(row) for row in found.mappings()]


async def latest_for(connection: AsyncConnection, key: str, *, prompt_hash: str) -> Evidence | None:
    """The newest evaluation of exactly this content of the prompt `key`, whatever state it is in; None without one.

    The newest is the one that was planned last. The same content counts under any version number.
    """
    row = (await connection.execute(LATEST, {"key": key, "hash": prompt_hash})).mappings().one_or_none()
    return None if row is None else Evidence(**dict(row))


def _registered(row: RowMapping) -> Registered:
    values: dict[str, Any] = dict(row)
    values["prompts"] = tuple(Judged(**one) for one in values["prompts"])
    return Registered(**values)


def _judged(pinned: Pinned, summary: Mapping[str, Any], *, complete: bool) -> dict[str, Any]:
    """What the thresholds say of one version; those that name no prompt or no version speak of all."""
    spoke = [one for one in summary["thresholds"] if _speaks_of(one, pinned)]
    passed = all(one["passed"] for one in spoke) if spoke and complete else None
    return {
        "key": pinned.prompt,
        "version": pinned.version,
        "hash": pinned.hash,
        "passed": passed,
        "thresholds": json_text(spoke),
    }


def _speaks_of(threshold: Mapping[str, Any], pinned: Pinned) -> bool:
    prompt, version = threshold.get("prompt"), threshold.get("version")
    return prompt in {None, "", pinned.prompt} and version in {None, "", pinned.version}
