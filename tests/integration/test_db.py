"""The schema as migrations make it, and the guard that services start behind."""

from datetime import UTC, datetime

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.db.engine import (
    REQUIRED_REVISION,
    DatabaseError,
    DatabaseSettings,
    create_engine,
    require_schema,
    schema_revision,
)
from libs.settings import SettingsError, load
from tests.conftest import migrate
from tools.local_stack.postgres import EmbeddedPostgres


async def test_migrations_reach_the_revision_the_code_needs(engine: AsyncEngine) -> None:
    assert await schema_revision(engine) == REQUIRED_REVISION
    await require_schema(engine)


async def test_a_second_migration_changes_nothing(database_url: str, engine: AsyncEngine) -> None:
    migrate(database_url)
    assert await schema_revision(engine) == REQUIRED_REVISION


async def test_an_empty_database_is_refused_with_what_to_do(postgres: EmbeddedPostgres) -> None:
    made = create_engine(DatabaseSettings(database_url=SecretStr(postgres.url())), application="test")
    with pytest.raises(DatabaseError, match=r"libs\.db migrate"):
        await require_schema(made)
    await made.dispose()


async def test_partitions_are_made_once_and_by_their_unit(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        make = text("select ensure_partition(:parent, :unit, :moment ::timestamptz)")
        await connection.execute(text("set local timezone to 'Asia/Tokyo'"))
        days = [
            await connection.scalar(
                make, {"parent": "llm_calls", "unit": "day", "moment": datetime.fromisoformat(moment)}
            )
            for moment in ("2026-03-31T23:30:00Z", "2026-03-31T00:00:00Z", "2026-04-01T00:00:00Z")
        ]
        month = await connection.scalar(
            make, {"parent": "forecasts", "unit": "month", "moment": datetime(2026, 3, 31, 23, 30, tzinfo=UTC)}
        )
    assert days == ["llm_calls_20260331", "llm_calls_20260331", "llm_calls_20260401"]
    assert month == "forecasts_202603"


def test_a_database_that_is_not_postgres_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "mysql://root:secret@host/db")
    with pytest.raises(SettingsError, match=r"DATABASE_URL: .*postgresql://") as caught:
        load(DatabaseSettings)
    assert "secret" not in str(caught.value)
