"""What an operator may turn, kept in Postgres: the latest unexpired row of a name wins, by the database's clock."""

from typing import Literal, TypeAlias

import structlog
from pydantic import Field
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from libs.settings import Flag, Settings

Switch: TypeAlias = Literal["ORDER_GATE_DISABLED", "LLM_SHADOW_MODE"]

CAUTIOUS: dict[Switch, bool] = {"ORDER_GATE_DISABLED": False, "LLM_SHADOW_MODE": True}
"""What holds before any row was written."""

log = structlog.get_logger(__name__)

# clock_timestamp(), since a transaction that waited for a lock must not see a switch that ended meanwhile.
LATEST = text(
    """
    select value from switches
    where name = :name and (expires_at is null or expires_at > clock_timestamp())
    order by id desc limit 1
    """
)

# Starts of several services at once must not write the same row twice.
LOCK = text("select pg_advisory_xact_lock(hashtext('switches'))")

LAST_FROM_ENVIRONMENT = text(
    "select env_value from switches where name = :name and env_value is not null order by id desc limit 1"
)

WRITE_FROM_ENVIRONMENT = text(
    """
    insert into switches (name, value, set_by, reason, env_value)
    values (:name, :value, 'environment', 'the environment of a start said otherwise than the one before', :value)
    """
)


class SwitchSettings(Settings):
    """What the environment says about the switches; it speaks only when its word changes."""

    order_gate_disabled: Flag = Field(
        default=CAUTIOUS["ORDER_GATE_DISABLED"], description="Emergency: the policy counts as allow, logged per order."
    )
    llm_shadow_mode: Flag = Field(
        default=CAUTIOUS["LLM_SHADOW_MODE"], description="Verdicts are logged and the policy does not gate."
    )


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


async def record_environment(engine: AsyncEngine, settings: SwitchSettings) -> None:
    """Write a row for each switch whose environment value differs from the one last recorded, or was never recorded.

    A mere restart changes nothing, so what an operator turned meanwhile stays turned.
    """
    said: dict[Switch, bool] = {
        "ORDER_GATE_DISABLED": settings.order_gate_disabled,
        "LLM_SHADOW_MODE": settings.llm_shadow_mode,
    }
    async with engine.begin() as connection:
        await connection.execute(LOCK)
        for name, value in said.items():
            recorded = await connection.scalar(LAST_FROM_ENVIRONMENT, {"name": name})
            if recorded is not None and recorded == value:
                continue
            await connection.execute(WRITE_FROM_ENVIRONMENT, {"name": name, "value": value})
            log.info("switch_set_by_environment", switch=name, value=value, before=recorded)
