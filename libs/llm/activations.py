"""The table `activations`: what was promoted, ramped and rolled back, by whom and why. Rows are only ever added.

Every row carries the ground it was made on, so that each process can tell for itself whether it still rules; see
`libs.llm.in_force`.
"""

import json
from typing import Any, Literal

from sqlalchemy import RowMapping, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.llm.errors import ExperimentError
from libs.llm.experiments import check_arms
from libs.llm.in_force import Activation, Arms, Ground, arms_as_pairs

_COLUMNS = "id, key, version, arms, who, why, file_version, file_experiment, env_arms, at"
_JSON = {"arms": JSONB, "file_experiment": JSONB}

LATEST = text(f"select distinct on (key) {_COLUMNS} from activations order by key, id desc").columns(**_JSON)
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


async def latest(connection: AsyncConnection) -> dict[str, Activation]:
    """The latest activation of every key that has one. Whether it rules is for `in_force` to say.

    Raises `ExperimentError` where a row was written by hand and cannot be read.
    """
    rows = (await connection.execute(LATEST)).mappings()
    return {row["key"]: _activation(row) for row in rows}


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
    return Activation(
        id=row["id"],
        key=row["key"],
        version=row["version"],
        arms=_arms(row),
        who=row["who"],
        why=row["why"],
        ground=Ground(row["file_version"], row["file_experiment"], row["env_arms"]),
        at=row["at"],
    )


def _arms(row: RowMapping) -> Arms:
    pairs: Any = row["arms"]
    try:
        return tuple((str(version), float(weight)) for version, weight in pairs or ())
    except (TypeError, ValueError) as error:
        raise ExperimentError(
            f"activation {row['id']} of {row['key']}: its arms are not pairs of version and weight; append another"
        ) from error
