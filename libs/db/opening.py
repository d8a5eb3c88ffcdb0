"""The database as a service opens it: reachable, new enough, closed at the end; or a refusal that names the place."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import asyncpg
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.db.engine import BACKGROUND_S, DatabaseError, DatabaseSettings, create_engine, require_schema
from libs.settings import load


def place_of(url: str) -> str:
    """Where a database is, for people: host and port or socket folder, and its name; never user or password."""
    parts = urlsplit(url)
    socket_folder = parse_qs(parts.query).get("host", [""])[0]
    host = parts.hostname or socket_folder or "localhost"
    port = f":{parts.port}" if parts.port else ""
    return f"{host}{port}, database {parts.path.strip('/') or 'postgres'}"


@asynccontextmanager
async def open_database(
    *, application: str, pool_size: int = 5, command_timeout: float = BACKGROUND_S
) -> AsyncGenerator[AsyncEngine, None]:
    """An engine on a database that answers and is new enough, disposed of after the block.

    A statement may take `command_timeout` seconds.

    Raises `SettingsError`, or `DatabaseError` naming the place and what is wrong with it.
    """
    settings = load(DatabaseSettings)
    engine = create_engine(settings, application=application, pool_size=pool_size, command_timeout=command_timeout)
    try:
        try:
            await require_schema(engine)
        except (OSError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            place = place_of(settings.database_url.get_secret_value())
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DatabaseError(f"cannot use the database at {place} (DATABASE_URL): {reason}") from error
        yield engine
    finally:
        await engine.dispose()
