"""Writing a backup: one snapshot of the whole database, in `pg_dump`'s own format."""

import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from sqlalchemy import text

from libs.db.engine import DatabaseSettings
from libs.db.opening import open_database
from libs.settings import load
from tools.backup.content import Content, content
from tools.backup.programs import program, run

STDOUT = Path("-")
COUNTING_S = 600.0


def new_name(folder: Path) -> Path:
    """Where a backup goes that nobody named: sorted by name is sorted by time."""
    return folder / f"lexi-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.dump"


def note_of(backup: Path) -> Path:
    """The note beside a backup that says what is in it."""
    return backup.with_name(f"{backup.name}.json")


async def dump(out: Path) -> Content:
    """Write the database to a file, or to stdout; services go on meanwhile.

    A file is complete or not there: it is written beside its place, put on disk, and then named.
    """
    url = load(DatabaseSettings).database_url.get_secret_value()
    async with (
        open_database(application="backup", command_timeout=COUNTING_S) as engine,
        engine.connect() as connection,
    ):
        # What is counted here and what pg_dump writes are one and the same snapshot.
        await connection.execute(text("set transaction isolation level repeatable read, read only"))
        held = await content(connection)
        snapshot = await connection.scalar(text("select pg_export_snapshot()"))
        server = int(await connection.scalar(text("show server_version_num")) or 0) // 10_000
        tool = program("pg_dump", server=server)
        command = [tool, "--format=custom", "--no-owner", "--no-privileges", f"--snapshot={snapshot}"]
        if out == STDOUT:
            run(command, url=url, write=sys.stdout.buffer)
        else:
            _to_file(command, out, url=url)
            with _private(note_of(out)) as note:
                note.write(json.dumps(asdict(held), indent=1).encode())
    return held


def _to_file(command: list[str | Path], out: Path, *, url: str) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.name}.part")
    try:
        with _private(part) as file:
            run(command, url=url, write=file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(out)
    except BaseException:
        with suppress(FileNotFoundError):
            part.unlink()
        raise


def _private(path: Path) -> IO[bytes]:
    """A new file that only its owner may read: prompts, replies and orders are in there."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
