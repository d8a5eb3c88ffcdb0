"""A row for everything that is pressed: who, what, why, and what came of it."""

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.analytics.console.door.sessions import Session
from services.analytics.console.house import Told

LONGEST = 500

log = structlog.get_logger(__name__)

RECORD = text(
    "insert into presses (key_name, action, subject, reason, outcome) "
    "values (:key_name, :action, :subject, :reason, :outcome)"
)


async def record(
    engine: AsyncEngine, session: Session, *, action: str, outcome: str, subject: str = "", reason: str = ""
) -> None:
    """Keep a press. It is in the log too, and there alone where Postgres does not take it: no press waits for that."""
    values = {
        "key_name": session.name,
        "action": action,
        "subject": storable(subject),
        "reason": storable(reason),
        "outcome": storable(outcome),
    }
    log.warning("console_press", **values)
    try:
        async with engine.begin() as connection:
            await connection.execute(RECORD, values)
    except Exception as error:  # noqa: BLE001 - see the docstring
        log.error("console_press_not_stored", action=action, error=type(error).__name__)  # noqa: TRY400 - said above


def outcome_of(told: Told) -> str:
    """What the api made of a press, in a line."""
    return f"{told.status} done" if told.good else f"{told.status} {told.problem}"


def storable(words: str) -> str:
    """The words as Postgres takes them, of bounded length."""
    return words.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()[:LONGEST]
