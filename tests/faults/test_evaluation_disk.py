"""A disk that takes no more: the run ends and says where, what was kept is whole, and the run can be gone on with."""

import asyncio
from pathlib import Path

import pytest

from libs.evaluation.running.folder import Folder
from libs.evaluation.running.journal import read_rows
from libs.evaluation.running.work import Ended
from tests.fakes.engine import FakeEngine
from tests.fakes.engine_replies import by_constraint
from tests.faults.evaluation_process import SLOTS, begun, child

CASES = 150


async def told(folder: Folder, fake: FakeEngine, *, most_bytes: int | None = None) -> object:
    """What a process says that goes on with the run."""
    process, hear = await asyncio.to_thread(child, folder, fake.base_url, most_bytes=most_bytes)
    try:
        return await asyncio.to_thread(hear.recv)
    finally:
        await asyncio.to_thread(process.join)
        hear.close()


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("most_bytes", [30_000, 30_001, 61_234])
async def test_a_full_disk_ends_the_run_and_loses_nothing(tmp_path: Path, most_bytes: int) -> None:
    folder = begun(tmp_path, CASES)
    async with FakeEngine(reply=by_constraint("fine"), slots=SLOTS, delay_s=0.002, chunks=2) as fake:
        said = await told(folder, fake, most_bytes=most_bytes)
        lines = lines_of(folder.rows)
        safe = [row.item for _, row in read_rows(folder.rows)]
        assert all(line.endswith(b"\n") for line in lines), "half a row was left behind"
        assert 0 < len(lines) == len(safe) < CASES
        assert said == (
            f"JournalError: {folder.rows} cannot be written: File too large. {len(safe)} rows are safe in it; "
            "make room, then resume the run"
        )
        asked = len(fake.requests)
        ended = await told(folder, fake)
    assert isinstance(ended, Ended)
    assert ended.done == CASES - len(safe)
    assert lines_of(folder.rows)[: len(lines)] == lines
    assert sorted(row.item for _, row in read_rows(folder.rows)) == list(range(CASES))
    assert len(fake.requests) - asked == CASES - len(safe)


async def test_a_disk_that_is_full_from_the_start_is_told_too(tmp_path: Path) -> None:
    folder = begun(tmp_path, 5)
    async with FakeEngine(reply=by_constraint("fine"), slots=SLOTS) as fake:
        said = await told(folder, fake, most_bytes=10)
    assert isinstance(said, str)
    assert said.endswith("File too large. 0 rows are safe in it; make room, then resume the run")
    assert folder.rows.read_bytes() == b""
