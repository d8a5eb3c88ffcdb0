"""Runs the migrations over the async driver, one process at a time."""

import asyncio

from alembic import context
from sqlalchemy import Connection, text

from libs.db.engine import DatabaseSettings, create_engine
from libs.settings import load

MIGRATION_LOCK = 0x1E51


def run(connection: Connection) -> None:
    """Migrate under an advisory lock, so that services which start together do not collide."""
    context.configure(connection=connection, transactional_ddl=True)
    with context.begin_transaction():
        connection.execute(text(f"select pg_advisory_xact_lock({MIGRATION_LOCK})"))
        context.run_migrations()


async def main() -> None:
    """Open one connection and migrate on it."""
    engine = create_engine(load(DatabaseSettings), application="migrate", pool_size=1)
    async with engine.connect() as connection:
        await connection.run_sync(run)
        await connection.commit()
    await engine.dispose()


asyncio.run(main())
