"""The table `activations`: what was promoted, ramped and rolled back, by whom and why. Rows are only ever added.

Every row carries the ground it was made on, so that each process can tell for itself which one rules for it; see
`libs.llm.in_force`.
"""

import json
from typing import Any, Literal, cast

from sqlalchemy import RowMapping, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.llm.errors import ExperimentError
from libs.llm.experiments import check_arms
from libs.llm.in_force import Activation, Arms, Ground, arms_as_pairs

_COLUMNS = "id, key, version, arms, who, why, file_version, file_experiment, env_arms, at"
_JSON = {"arms": JSONB, "file_experiment": JSONB}

LATEST = text(
    f"""
    select {_COLUMNS} from (
      select distinct on (key, file_version, file_experiment, env_arms) {_COLUMNS} from activations
      order by key, file_version, file_experiment, env_arms, id desc
    ) as latest
    order by id desc
    """
).columns(**_JSON)
WHOLE = text(f"select {_COLUMNS} from activations where key = any(:keys) order by id desc").columns(**_JSON)
HISTORY = text(f"select {_COLUMNS} from activations where key = :key order by id desc limit :limit").columns(**_JSON)
LOCK = text("select pg_advisory_xact_lock(hashtext('activations:' || cast(:key as text)))")
LAST_ID = text("select id from activations where key = :key order by id desc limit 1")
APPEND = text(
    f"""
    insert into activations (key, version, arms, who, why, file_version, file_experiment, env_arms, at)
    values (:key, :version, cast(:arms as jsonb), :who, :why, :file_version, cast(:file_experiment as jsonb), :env_arms,
      clock_timestamp())
    returning {_COLUMNS}
    """
).columns(**_JSON)


async def latest(connection: AsyncConnection) -> dict[str, tuple[Activation, ...]]:
    """Of every key that has any, the latest activation on each ground, newest first. `in_force` says which one rules.

    Where one of them was written by hand and cannot be read, it is all of the key's, since an older one rules then.
    """
    found = [_activation(row) for row in (await connection.execute(LATEST)).mappings()]
    unread = sorted({one.key for one in found if one.problem is not None})
    if unread:
        rows = (await connection.execute(WHOLE, {"keys": unread})).mappings()
        found = [*(one for one in found if one.key not in unread), *map(_activation, rows)]
    by_key: dict[str, tuple[Activation, ...]] = {}
    for one in found:
        by_key[one.key] = (*by_key.get(one.key, ()), one)
    return by_key


async def history(connection: AsyncConnection, key: str, *, limit: int = 50) -> list[Activation]:
    """The activations of a key, newest first."""
    rows = (await connection.execute(HISTORY, {"key": key, "limit": limit})).mappings()
    return [_activation(row) for row in rows]


async def activate(
    connection: AsyncConnection,
    *,
    key: str,
    version: str,
    arms: Arms,
    who: str,
    why: str,
    ground: Ground,
    expected: int | Literal["any"] | None = "any",
) -> Activation | None:
    """Append an activation in the caller's transaction (READ COMMITTED); it rules once that is committed.

    `arms` are () where no experiment shall run. `expected` is the id of the latest row the caller judged by, None for
    "there was none": where another row came meanwhile, nothing is written and None is returned. Activations of one key
    wait for each other. Raises `ExperimentError` for arms that cannot be drawn from, or where nobody is named.
    """
    if not who.strip():
        raise ExperimentError(f"an activation of {key} needs a name: who does this?")
    if arms:
        check_arms(arms, where=f"the arms of {key}")
    await connection.execute(LOCK, {"key": key})
    if expected != "any" and await connection.scalar(LAST_ID, {"key": key}) != expected:
        return None
    values = {
        "key": key,
        "version": version,
        "arms": json.dumps(arms_as_pairs(arms)) if arms else None,
        "who": who,
        "why": why,
        "file_version": ground.file_version,
        "file_experiment": None if ground.file_experiment is None else json.dumps(ground.file_experiment),
        "env_arms": ground.env_arms,
    }
    return _activation((await connection.execute(APPEND, values)).mappings().one())


def _activation(row: RowMapping) -> Activation:
    arms, experiment = _arms(row["arms"]), row["file_experiment"]
    problem: str | None = None
    if arms is None:
        problem = "its arms are not pairs of version and weight; append another"
    elif experiment is not None and not _is_experiment(experiment):
        problem = "its file_experiment is not an experiment; append another"
    return Activation(
        id=row["id"],
        key=row["key"],
        version=row["version"],
        arms=() if arms is None or problem is not None else arms,
        who=row["who"],
        why=row["why"],
        ground=Ground(row["file_version"], experiment, row["env_arms"]),
        at=row["at"],
        problem=problem,
    )


def _is_experiment(said: Any) -> bool:
    return isinstance(said, dict) and bool(_arms(cast("dict[str, Any]", said).get("arms")))


def _arms(pairs: Any) -> Arms | None:
    """Arms as they were kept, () for none; None where somebody wrote them by hand and they cannot be read."""
    if pairs is None:
        return ()
    try:
        arms = tuple((str(version), float(weight)) for version, weight in pairs)
    except (TypeError, ValueError, OverflowError):
        return None
    return arms if isinstance(pairs, list) else None
