"""A backup of a live database, and another database made of it."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.integration.audit_cases import change, open_desk, tell
from tools.local_stack.postgres import EmbeddedPostgres

ROOT = Path(__file__).parents[2]
_numbers = count()


@pytest.fixture
def empty(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The address of a database without a table."""
    name = f"restored{next(_numbers)}"
    postgres.ensure_database(name)
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture
async def filled(database_url: str, tmp_path: Path) -> str:
    """A database with a chain of seven verdicts in it."""
    async with open_desk(database_url, tmp_path / "state") as desk:
        await tell(desk, 7)
    return database_url


def run(
    url: str | None, state: Path, *words: str, stdin: bytes | None = None, path: str | None = None
) -> subprocess.CompletedProcess[bytes]:
    """The command, as `make backup` and `make restore` run it."""
    env = {"DATABASE_URL": url or "", "LOCAL_STATE": str(state), "PATH": path or os.environ["PATH"]}
    command = [sys.executable, "-m", "tools.backup", *words]
    return subprocess.run(command, cwd=ROOT, env=env, input=stdin, capture_output=True, timeout=120)


def told(done: subprocess.CompletedProcess[bytes]) -> str:
    return done.stderr.decode()


def test_a_backup_restores_into_an_empty_database_and_the_chain_holds(filled: str, empty: str, tmp_path: Path) -> None:
    dumped = run(filled, tmp_path, "dump")
    assert dumped.returncode == 0, told(dumped)
    assert "7 gate_verdicts" in told(dumped)
    (backup,) = (tmp_path / "backups").glob("lexi-*.dump")
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    restored = run(empty, tmp_path, "restore", str(backup))
    assert restored.returncode == 0, told(restored)
    assert "7 gate_verdicts" in told(restored)
    assert "the chain of verdicts holds" in told(restored)
    again = run(empty, tmp_path, "restore", str(backup))
    assert again.returncode == 1
    assert "restore into an empty one" in told(again)


def test_it_passes_through_a_pipe_too(filled: str, empty: str, tmp_path: Path) -> None:
    dumped = run(filled, tmp_path, "dump", "--out", "-")
    assert dumped.stdout.startswith(b"PGDMP")
    restored = run(empty, tmp_path, "restore", "-", stdin=dumped.stdout)
    assert restored.returncode == 0, told(restored)
    assert "7 gate_verdicts" in told(restored)


def test_half_a_backup_leaves_the_database_empty(filled: str, empty: str, tmp_path: Path) -> None:
    whole = run(filled, tmp_path, "dump", "--out", "-").stdout
    cut = run(empty, tmp_path, "restore", "-", stdin=whole[: len(whole) * 3 // 4])
    assert cut.returncode == 1
    assert "pg_restore ended with" in told(cut)
    assert run(empty, tmp_path, "restore", "-", stdin=whole).returncode == 0


async def test_a_broken_chain_is_told_after_the_restore(
    filled: str, empty: str, engine: AsyncEngine, tmp_path: Path
) -> None:
    await change(engine, "alter table gate_verdicts disable trigger user")
    await change(engine, "update gate_verdicts set qty = 2 where seq = 4")
    backup = tmp_path / "bad.dump"
    assert run(filled, tmp_path, "dump", "--out", str(backup)).returncode == 0
    restored = run(empty, tmp_path, "restore", str(backup))
    assert restored.returncode == 1
    assert "the chain of verdicts does not hold: row 4" in told(restored).lower()


def test_rows_that_the_note_knows_and_the_database_has_not_are_told(filled: str, empty: str, tmp_path: Path) -> None:
    backup = tmp_path / "a.dump"
    assert run(filled, tmp_path, "dump", "--out", str(backup)).returncode == 0
    note = Path(f"{backup}.json")
    known = json.loads(note.read_text())
    known["rows"]["gate_verdicts"] = 8
    note.write_text(json.dumps(known))
    restored = run(empty, tmp_path, "restore", str(backup))
    assert restored.returncode == 1
    assert "7 gate_verdicts instead of 8" in told(restored)


def test_an_older_client_on_the_path_is_passed_over(filled: str, empty: str, tmp_path: Path) -> None:
    old = tmp_path / "bin" / "pg_dump"
    old.parent.mkdir()
    old.write_text('#!/bin/sh\necho "pg_dump (PostgreSQL) 9.6.1"\n')
    old.chmod(0o755)
    done = run(filled, tmp_path, "dump", "--out", "-", path=f"{old.parent}:{os.environ['PATH']}")
    assert done.returncode == 0, told(done)


async def test_partitions_and_sequences_go_on_where_they_stood(
    filled: str, empty: str, engine: AsyncEngine, tmp_path: Path, postgres: EmbeddedPostgres
) -> None:
    async with engine.connect() as connection:
        partitions = await connection.scalar(text("select count(*) from pg_class where relispartition"))
    whole = run(filled, tmp_path, "dump", "--out", "-").stdout
    assert run(empty, tmp_path, "restore", "-", stdin=whole).returncode == 0
    name = empty.split("?")[0].rsplit("/", 1)[1]
    assert postgres.query("select count(*) from pg_class where relispartition", database=name) == str(partitions)
    async with open_desk(empty, tmp_path / "other") as desk:
        await tell(desk, 2, begin=7)
    assert postgres.query("select max(seq) from gate_verdicts", database=name) == "9"


def test_a_database_out_of_reach_is_one_line_that_names_it(tmp_path: Path) -> None:
    url = "postgresql://lexi:secret@127.0.0.1:1/lexi"
    for words in (("dump",), ("restore", "-")):
        done = run(url, tmp_path, *words, stdin=b"")
        assert done.returncode == 1
        assert "127.0.0.1:1, database lexi" in told(done)
        assert "secret" not in told(done)
        assert "Traceback" not in told(done)
    assert list(tmp_path.iterdir()) == []


def test_without_a_database_named_the_embedded_one_is_made_of_the_backup(filled: str, state_folder: Path) -> None:
    state_folder.mkdir()
    whole = run(filled, state_folder, "dump", "--out", "-").stdout
    restored = run(None, state_folder, "restore", "-", stdin=whole)
    assert restored.returncode == 0, told(restored)
    again = run(None, state_folder, "restore", "-", stdin=whole)
    assert again.returncode == 1
    assert f"mv {state_folder}/postgres {state_folder}/postgres.old" in told(again)
    server = EmbeddedPostgres(state_folder / "postgres")
    server.start()
    try:
        assert server.query("select count(*) from gate_verdicts", database="lexi") == "7"
    finally:
        server.stop()
