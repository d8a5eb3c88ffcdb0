"""Reading a backup into an empty database, and checking what came out of it."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.db.engine import DatabaseSettings, create_engine
from libs.db.opening import place_of
from libs.settings import load
from libs.trading.audit.verification import verify
from tools.backup.content import Content, content
from tools.backup.dumping import note_of
from tools.backup.programs import BackupError, program, run

STDIN = Path("-")
TABLES = text(
    "select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace "
    "where n.nspname = 'public' and c.relkind in ('r', 'p')"
)


async def restore(backup: Path) -> Content:
    """Fill an empty database from a backup, all of it or nothing; what it holds then, its chain verified.

    Raises `BackupError` where the database is not empty, and where the chain or the counts are not the backup's.
    """
    settings = load(DatabaseSettings)
    url = settings.database_url.get_secret_value()
    note = _note(backup)
    engine = create_engine(settings, application="restore", command_timeout=600)
    try:
        server = await _empty(engine, place_of(url))
        tool = program("pg_restore", server=server)
        command = [tool, "--exit-on-error", "--single-transaction", "--no-owner", "--no-privileges", "--dbname="]
        with nullcontext(sys.stdin.buffer) if backup == STDIN else _opened(backup) as file:
            run(command, url=url, read=file)
        return await _checked(engine, note)
    finally:
        await engine.dispose()


def _opened(backup: Path):
    try:
        return backup.open("rb")
    except OSError as error:
        raise BackupError(f"{backup} cannot be read: {error.strerror}") from error


def _note(backup: Path) -> Content | None:
    path = note_of(backup)
    if backup == STDIN or not path.exists():
        return None
    try:
        return Content(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise BackupError(f"{path} is not the note of a backup: {error}") from error


async def _empty(engine: AsyncEngine, place: str) -> int:
    """The server's major version, where the database holds nothing that a restore would mix with."""
    try:
        async with engine.connect() as connection:
            tables = await connection.scalar(TABLES)
            version = int(await connection.scalar(text("show server_version_num")) or 0)
    except (OSError, SQLAlchemyError) as error:
        raise BackupError(f"cannot use the database at {place} (DATABASE_URL): {error}".splitlines()[0]) from error
    if tables:
        raise BackupError(f"the database at {place} holds {tables} tables; restore into an empty one")
    return version // 10_000


async def _checked(engine: AsyncEngine, note: Content | None) -> Content:
    async with engine.connect() as connection:
        found = await content(connection)
    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.execute(text("analyze"))  # a restored table has no statistics, and plans go by them
    chain = await verify(engine)
    if chain.broken is not None:
        raise BackupError(f"restored, but the chain of verdicts does not hold: {chain.broken}")
    if note is not None and (differences := note.missing(found)):
        raise BackupError(f"restored, but it is not what was backed up: {'; '.join(differences)}")
    return found
