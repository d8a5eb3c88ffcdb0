"""Turning a switch: each change is a row with who and why, and the kill switch tells the desk."""

from dataclasses import asdict, dataclass, replace

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from libs.alerts import raise_alert
from libs.switches.reading import CAUTIOUS, Standing, Switch, standing
from libs.switches.settings import SwitchSettings

GATE_OFF: Switch = "ORDER_GATE_DISABLED"
LONGEST_MINUTES = 240
"""How long the gate may stay off."""
USUAL_MINUTES = 15
"""How long the gate stays off where nobody says."""

log = structlog.get_logger(__name__)

# Starts of several services at once must not write the same row twice, nor two operators' rows mix.
LOCK = text("select pg_advisory_xact_lock(hashtext('switches'))")

LAST_FROM_ENVIRONMENT = text(
    "select env_value from switches where name = :name and env_value is not null and set_by = :set_by "
    "order by id desc limit 1"
)
LAST_FROM_ANY = text(
    "select env_value from switches where name = :name and env_value is not null order by id desc limit 1"
)

WRITE = text(
    """
    insert into switches (name, value, set_by, reason, env_value, set_at, expires_at)
    select :name, :value, :set_by, :reason, cast(:env_value as boolean), moment,
      moment + cast(:minutes as integer) * interval '1 minute'
    from clock_timestamp() as moment
    returning id
    """
)

ENVIRONMENT = "environment"
SAID_ALREADY = "kept for the next start; another service had said so already"
FIRST_START = "first start: as the environment and its defaults have it"
ENVIRONMENT_CHANGED = "the environment of a start said otherwise than the one before"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """A row to write. `minutes` is how long it holds; `env_value` is set where the environment speaks."""

    name: Switch
    value: bool
    set_by: str
    reason: str
    minutes: int | None
    env_value: bool | None = None


class SwitchError(Exception):
    """A switch cannot be turned like this; the message says why."""


async def turn(
    connection: AsyncConnection,
    name: Switch,
    value: bool,
    *,
    operator: str,
    reason: str,
    minutes: int | None = None,
    key_name: str = "",
) -> Standing:
    """Turn a switch inside the caller's transaction; returns where it stands then.

    Disabling the gate takes `minutes` (1 to 240, 15 where None) and ends by itself; nothing else takes them. `key_name`
    is the key that asked, empty where it came from the command line. Raises `SwitchError`.
    """
    if not operator.strip() or not reason.strip():
        raise SwitchError("say who turns the switch and why")
    lasts = _lasts(name, value, minutes=minutes)
    set_by = f"{operator} (key {key_name})" if key_name else operator
    await connection.execute(LOCK)
    await _write(connection, _Change(name=name, value=value, set_by=set_by, reason=reason, minutes=lasts))
    return await _standing(connection, name)


async def record_environment(engine: AsyncEngine, settings: SwitchSettings, *, service: str = "") -> None:
    """Write a row for each switch whose environment value differs from the one last recorded, or was never recorded.

    A mere restart changes nothing: what an operator turned meanwhile stays turned, a gate that came back stays there.
    Each `service` is compared with what it said itself, so that two whose environments differ do not take turns. One
    that starts for the first time is compared with what any of them said last.
    """
    set_by = f"{ENVIRONMENT} of {service}" if service else ENVIRONMENT
    said: dict[Switch, bool] = {
        "ORDER_GATE_DISABLED": settings.order_gate_disabled,
        "LLM_SHADOW_MODE": settings.llm_shadow_mode,
    }
    async with engine.begin() as connection:
        await connection.execute(LOCK)
        for name, value in said.items():
            own = await connection.scalar(LAST_FROM_ENVIRONMENT, {"name": name, "set_by": set_by})
            if own is not None and own == value:
                continue
            last = await connection.scalar(LAST_FROM_ANY, {"name": name})
            change = _Change(
                name=name,
                value=value,
                set_by=set_by,
                reason=FIRST_START if last is None else ENVIRONMENT_CHANGED,
                minutes=LONGEST_MINUTES if _disables(name, value) else None,
                env_value=value,
            )
            if own is None and last is not None and last == value:
                await _remember(connection, change)
            else:
                await _write(connection, change, quiet=last is None and value == CAUTIOUS[name])
        await _end_the_endless(connection)


async def _remember(connection: AsyncConnection, change: _Change) -> None:
    """Keep what a service said for the first time where another one said the same: the row has ended as it begins."""
    await connection.execute(WRITE, asdict(replace(change, reason=SAID_ALREADY, minutes=0)))


async def _end_the_endless(connection: AsyncConnection) -> None:
    """Give an end to a kill switch that was written by other means, or by a release that knew none."""
    stand = await _standing(connection, GATE_OFF)
    if stand.value and stand.expires_at is None:
        change = _Change(name=GATE_OFF, value=True, set_by=stand.set_by, reason=stand.reason, minutes=LONGEST_MINUTES)
        await _write(connection, change)


async def _standing(connection: AsyncConnection, name: Switch) -> Standing:
    return next(stand for stand in await standing(connection) if stand.name == name)


def _disables(name: Switch, value: bool) -> bool:
    return name == GATE_OFF and value


def _lasts(name: Switch, value: bool, *, minutes: int | None) -> int | None:
    if not _disables(name, value):
        if minutes is not None:
            raise SwitchError(f"{name}={str(value).lower()} has no end: leave minutes out")
        return None
    lasts = USUAL_MINUTES if minutes is None else minutes
    if not 1 <= lasts <= LONGEST_MINUTES:
        raise SwitchError(f"the gate stays off for 1 to {LONGEST_MINUTES} minutes, not {lasts}")
    return lasts


async def _write(connection: AsyncConnection, change: _Change, *, quiet: bool = False) -> None:
    """Append the row, and before one that ends what holds afterwards, so that no older and longer one comes back.

    A `quiet` change is news to nobody: the default, written at the first start.
    """
    if change.minutes is not None:
        reason = f"holds when this has ended: {change.reason}"
        after = replace(change, value=not change.value, reason=reason, minutes=None, env_value=None)
        await connection.execute(WRITE, asdict(after))
    number = await connection.scalar(WRITE, asdict(change))
    (log.info if quiet else log.warning)("switch_turned", **asdict(change))
    if change.name == GATE_OFF and not quiet:
        done = f"disabled for {change.minutes} minutes" if change.value else "enabled again"
        words = f"The policy of the order gate was {done} by {change.set_by}: {change.reason}"
        await raise_alert(connection, key=f"switch:{number}", kind="kill_switch", text=words)
