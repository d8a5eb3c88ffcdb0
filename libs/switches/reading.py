"""Where the switches stand."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

Switch: TypeAlias = Literal["ORDER_GATE_DISABLED", "LLM_SHADOW_MODE"]

CAUTIOUS: dict[Switch, bool] = {"ORDER_GATE_DISABLED": False, "LLM_SHADOW_MODE": True}
"""What holds before any row was written."""

# clock_timestamp(), since a transaction that waited for a lock must not see a switch that ended meanwhile.
LATEST = text(
    """
    select value from switches
    where name = :name and (expires_at is null or expires_at > clock_timestamp())
    order by id desc limit 1
    """
)

ALL = text(
    """
    select s.* from unnest(cast(:names as text[])) as asked(name) cross join lateral (
      select name, value, set_by, reason, set_at, expires_at from switches
      where name = asked.name and (expires_at is null or expires_at > clock_timestamp())
      order by id desc limit 1
    ) as s
    """
)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a switch stands, and who set it so; `set_at` is None before any row was written.

    `expires_at` is when it ends by itself, None where it does not.
    """

    name: Switch
    value: bool
    set_by: str
    reason: str
    set_at: datetime | None
    expires_at: datetime | None


async def switch(connection: AsyncConnection, name: Switch) -> bool:
    """Where a switch stands now, read inside the caller's transaction."""
    value = await connection.scalar(LATEST, {"name": name})
    return CAUTIOUS[name] if value is None else bool(value)


async def shadow_mode(connection: AsyncConnection) -> bool:
    """Whether the policy's verdicts are only logged."""
    return await switch(connection, "LLM_SHADOW_MODE")


async def order_gate_disabled(connection: AsyncConnection) -> bool:
    """Whether the policy is switched off and counts as allow."""
    return await switch(connection, "ORDER_GATE_DISABLED")


async def standing(connection: AsyncConnection) -> list[Standing]:
    """Where every switch stands now, with who set it and until when."""
    found = await connection.execute(ALL, {"names": list(CAUTIOUS)})
    rows = {row["name"]: Standing(**row) for row in found.mappings()}
    return [rows.get(name) or _untouched(name) for name in CAUTIOUS]


def _untouched(name: Switch) -> Standing:
    return Standing(
        name=name,
        value=CAUTIOUS[name],
        set_by="default",
        reason="nobody has turned it yet",
        set_at=None,
        expires_at=None,
    )
