"""Where the calls are recorded: in the database where one is named and answers, else in the spool, until one does.

The older service ran alone, so this one serves without a database too.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NoReturn

import asyncpg
import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from libs.db.engine import BACKGROUND_S, DatabaseSettings, create_engine, require_schema
from libs.db.opening import place_of
from libs.llm.calls import REST_S
from libs.probes import Check, Degraded, database_checks
from libs.settings import load
from services.sidecar.settings import RecordSettings

AWAY = (OSError, TimeoutError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError)
HOPELESS_S = 86_400.0
"""How often a database that nobody named is tried."""
NONE_NAMED = "no DATABASE_URL: calls wait in the spool until this service is started with one"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """An engine for the record, which need not reach anything, how often that is tried again, and the lines of `/ready`
    about it.
    """

    engine: AsyncEngine
    retry_s: float
    checks: Mapping[str, Check]


async def _nowhere() -> NoReturn:
    raise ConnectionRefusedError(NONE_NAMED)


@asynccontextmanager
async def open_record() -> AsyncGenerator[Record, None]:
    """Where the calls go, closed after the block.

    Raises `SettingsError` for an address that cannot be read, `DatabaseError` where the schema is older than needed.
    """
    url = load(RecordSettings).database_url
    if url is None:
        engine = create_async_engine("postgresql+asyncpg://", async_creator=_nowhere)
        log.warning("no_database", spooled=True)
    else:
        settings = load(DatabaseSettings, database_url=url)
        engine = create_engine(settings, application="sidecar", pool_size=2, command_timeout=BACKGROUND_S)
    try:
        if url is not None:
            await _require_schema_if_there(engine, place_of(url.get_secret_value()))
        yield Record(engine, HOPELESS_S if url is None else REST_S, _checks(engine, named=url is not None))
    finally:
        await engine.dispose()


async def _require_schema_if_there(engine: AsyncEngine, place: str) -> None:
    try:
        await require_schema(engine)
    except AWAY as error:
        log.warning("database_away", place=place, error=type(error).__name__, spooled=True)


def _checks(engine: AsyncEngine, *, named: bool) -> dict[str, Check]:
    """What is red elsewhere is yellow here: models are asked without a database too."""

    async def none_named() -> str | None:
        return Degraded(NONE_NAMED)

    if not named:
        return {"database": none_named}
    return {name: _yellow(check) for name, check in database_checks(engine).items()}


def _yellow(check: Check) -> Check:
    async def checked() -> str | None:
        try:
            reason = await check()
        except AWAY as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return None if reason is None else Degraded(f"{reason}; calls wait in the spool")

    return checked
