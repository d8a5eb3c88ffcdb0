"""One way to reach Postgres: engine, settings, and the check that the schema is new enough."""

from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pydantic import Field, SecretStr, field_validator
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from libs.settings import Settings

REQUIRED_REVISION = 7

CONNECT_S = 5.0
"""How long a connection may take to make, or to come free in the pool."""
INTERACTIVE_S = 5.0
"""How long a statement may take where somebody waits for the answer."""
BACKGROUND_S = 30.0
"""How long it may take everywhere else."""


class DatabaseError(Exception):
    """The database cannot serve this process; the message says why and what to do."""


class DatabaseSettings(Settings):
    """Where the state of the house lives."""

    database_url: SecretStr = Field(
        description="Where Postgres answers, postgresql://user:password@host/name; `make run` embeds one where unset."
    )

    @field_validator("database_url")
    @classmethod
    def must_be_postgres(cls, value: SecretStr) -> SecretStr:
        """Accept `postgresql://` addresses only."""
        if urlsplit(value.get_secret_value()).scheme not in {"postgresql", "postgres", "postgresql+asyncpg"}:
            raise ValueError("must look like postgresql://user@host/name")
        return value


def driver_url(url: str) -> str:
    """The same address for SQLAlchemy with asyncpg. Query parameters such as a socket's `host` stay."""
    parts = urlsplit(url)
    query = urlencode([("ssl" if name == "sslmode" else name, value) for name, value in parse_qsl(parts.query)])
    return urlunsplit(("postgresql+asyncpg", parts.netloc, parts.path, query, ""))


def create_engine(
    settings: DatabaseSettings, *, application: str, pool_size: int = 5, command_timeout: float = BACKGROUND_S
) -> AsyncEngine:
    """An engine whose connections are checked before use, so that a restart of Postgres heals by itself.

    A statement that takes longer than `command_timeout` seconds ends in a `TimeoutError`.
    """
    return create_async_engine(
        driver_url(settings.database_url.get_secret_value()),
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_pre_ping=True,
        pool_timeout=CONNECT_S,
        hide_parameters=True,
        connect_args={
            "timeout": CONNECT_S,
            "command_timeout": command_timeout,
            "server_settings": {"application_name": f"lexi-{application}", "timezone": "UTC", "jit": "off"},
        },
    )


async def schema_revision(engine: AsyncEngine) -> int:
    """The number of the newest migration that ran, 0 on an empty database."""
    async with engine.connect() as connection:
        exists = await connection.scalar(text("select to_regclass('alembic_version') is not null"))
        if not exists:
            return 0
        return int(await connection.scalar(text("select version_num from alembic_version")) or 0)


async def require_schema(engine: AsyncEngine) -> None:
    """Refuse a schema older than this code needs; accept a newer one, since migrations only expand."""
    found = await schema_revision(engine)
    if found < REQUIRED_REVISION:
        raise DatabaseError(
            f"the database's schema is at revision {found}, this service needs {REQUIRED_REVISION}: "
            "run `python -m libs.db migrate`"
        )
