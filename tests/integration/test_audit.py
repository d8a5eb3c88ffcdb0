"""The audit of verdicts that the desk itself stored: what it proves, and what it finds when somebody tampered."""

import csv
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.trading.audit.links import START, Link
from libs.trading.audit.verification import Verified, verify
from services.api.strategist.desk.desk import Desk
from tests.integration.audit_cases import change, open_desk, tell

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def desk(database_url: str, tmp_path: Path) -> AsyncGenerator[Desk, None]:
    async with open_desk(database_url, tmp_path) as made:
        yield made


def audit(database_url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, as an operator runs it."""
    return subprocess.run(
        [sys.executable, "-m", "libs.trading.audit", *arguments],
        cwd=ROOT,
        env={"DATABASE_URL": database_url, "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_an_untouched_chain_holds_and_can_be_followed_further(desk: Desk, engine: AsyncEngine) -> None:
    assert await verify(engine) == Verified(0, START)
    await tell(desk, 3)
    first = await verify(engine)
    assert (first.rows, first.head.seq, first.broken) == (3, 3, None)
    await tell(desk, 2, begin=3)
    more = await verify(engine, first.head)
    assert (more.rows, more.head.seq, more.broken) == (2, 5, None)
    assert (await verify(engine)).head == more.head


TAMPERED = {
    "qty = 2": "its column qty says",
    "verdict = 'allow'": "its column verdict says",
    "reasons = array['ALLOW']": "its column reasons says",
    "at = at + interval '1 microsecond'": "its column at says",
    "key_name = 'other'": "its column key_name says",
    "forecast_id = gen_random_uuid()": "its column forecast_id says",
    "first = not first": "its column first says",
    "decision_age_s = 1": "its column decision_age_s says",
    "hash = repeat('0', 64)": "its hash is",
    "payload = replace(payload, 'momentum', 'patience')": "its hash is",
}


@pytest.mark.parametrize("tampering", TAMPERED)
async def test_the_first_row_that_was_touched_is_named(desk: Desk, engine: AsyncEngine, tampering: str) -> None:
    await tell(desk, 5)
    await change(engine, f"update gate_verdicts set {tampering} where seq in (3, 4)")
    found = await verify(engine)
    assert found.broken is not None
    assert (found.rows, found.broken.seq) == (2, 3)
    assert TAMPERED[tampering] in found.broken.how


async def test_a_payload_made_anew_with_its_hash_breaks_the_row_after(desk: Desk, engine: AsyncEngine) -> None:
    await tell(desk, 4)
    await change(
        engine,
        """
        update gate_verdicts g set strategy = 'patience', payload = n.payload,
          hash = encode(sha256(convert_to(p.hash || E'\\n' || n.payload, 'UTF8')), 'hex')
        from gate_verdicts p, lateral (select replace(o.payload, 'momentum', 'patience') as payload
          from gate_verdicts o where o.seq = 2) n
        where g.seq = 2 and p.seq = 1
        """,
    )
    found = await verify(engine)
    assert found.broken is not None
    assert found.broken.seq == 3


async def test_a_hole_a_lost_beginning_and_a_lost_end_are_found(desk: Desk, engine: AsyncEngine) -> None:
    await tell(desk, 6)
    head = (await verify(engine)).head
    await change(engine, "delete from gate_verdicts where seq = 6")
    assert (await verify(engine)).broken is None
    end = await verify(engine, head)
    assert str(end.broken).startswith("row 6 is broken: it is gone")
    await change(engine, "delete from gate_verdicts where seq in (3, 4)")
    assert str((await verify(engine)).broken) == "row 3 is broken: it is gone (3 to 4 missing before row 5)"
    await change(engine, "delete from gate_verdicts where seq = 1")
    assert str((await verify(engine)).broken) == "row 1 is broken: it is gone (1 missing before row 2)"


async def test_a_place_that_was_noted_must_stand_as_it_was(desk: Desk, engine: AsyncEngine) -> None:
    await tell(desk, 2)
    found = await verify(engine, Link(2, "0" * 64))
    assert found.broken is not None
    assert found.broken.seq == 2


async def test_the_command_says_where_and_exits_accordingly(desk: Desk, engine: AsyncEngine, database_url: str) -> None:
    await tell(desk, 4)
    head = (await verify(engine)).head
    whole = audit(database_url, "verify")
    assert whole.returncode == 0
    assert whole.stderr == f"4 rows hold; the last is 4:{head.hash}\n"
    assert audit(database_url, "verify", "--head", f"4:{head.hash}").returncode == 0
    await change(engine, "delete from gate_verdicts where seq = 4")
    assert audit(database_url, "verify").returncode == 0
    cut = audit(database_url, "verify", "--head", f"4:{head.hash}")
    assert (cut.returncode, "row 4 is broken: it is gone" in cut.stderr) == (1, True)
    await change(engine, "update gate_verdicts set qty = 7 where seq = 2")
    broken = audit(database_url, "verify")
    assert broken.returncode == 1
    assert broken.stderr == 'row 2 is broken: its column qty says "7", its payload "1.5"; 1 rows before it hold\n'


def test_the_command_without_a_database_is_one_line(tmp_path: Path) -> None:
    away = audit(f"postgresql://me:secret@/postgres?host={tmp_path}", "verify")
    assert (away.returncode, away.stderr.count("\n"), "secret" in away.stderr) == (2, 1, False)
    assert "DATABASE_URL" in away.stderr
    wrong = audit("", "export", "--since", "yesterday")
    assert wrong.returncode == 2
    assert "'yesterday' is no moment" in wrong.stderr


async def test_an_export_carries_its_proof(desk: Desk, engine: AsyncEngine, database_url: str, tmp_path: Path) -> None:
    await tell(desk, 2, strategy="before")
    async with engine.connect() as connection:
        since = await connection.scalar(text("select clock_timestamp()"))
    await tell(desk, 3, begin=2)
    head = (await verify(engine)).head
    out = tmp_path / "verdicts.csv"
    made = audit(database_url, "export", "--since", since.isoformat(), "--out", str(out))
    assert made.returncode == 0
    *lines, last = out.read_text(encoding="utf-8").splitlines()
    assert last == f"# head 5 {head.hash}"
    rows = list(csv.DictReader(lines))
    assert [row["seq"] for row in rows] == ["3", "4", "5"]
    assert {row["strategy"] for row in rows} == {"momentum"}
    assert rows[0]["client_order_id"] == "'=o2"
    assert '"client_order_id":"=o2"' in rows[0]["payload"]
    assert rows[-1]["hash"] == head.hash
    checked = audit("", "verify", "--file", str(out))
    assert checked.stderr == f"3 rows hold; the last is 5:{head.hash}\n"
    out.write_text(out.read_text(encoding="utf-8").replace("momentum", "patience"), encoding="utf-8")
    assert audit("", "verify", "--file", str(out)).returncode == 1


async def test_an_export_to_stdout_until_a_moment(desk: Desk, engine: AsyncEngine, database_url: str) -> None:
    await tell(desk, 2)
    everything = audit(database_url, "export", "--since", "2000-01-01")
    assert len(everything.stdout.splitlines()) == 4
    nothing = audit(database_url, "export", "--since", "2000-01-01", "--until", "2001-01-01T00:00:00Z")
    assert (nothing.returncode, len(nothing.stdout.splitlines())) == (0, 2)
    await change(engine, "update gate_verdicts set qty = 9 where seq = 1")
    broken = audit(database_url, "export", "--since", "2000-01-01")
    assert (broken.returncode, len(broken.stdout.splitlines())) == (1, 4)


def test_a_file_that_is_no_export_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n", encoding="utf-8")
    refused = audit("", "verify", "--file", str(other))
    assert (refused.returncode, "not an export of verdicts" in refused.stderr) == (2, True)
