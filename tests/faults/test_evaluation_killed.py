"""`kill -9` in the middle of an evaluation, again and again: nothing that was kept is lost, nothing is kept twice, and
only what was in flight is asked twice.
"""

import asyncio
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

from libs.evaluation.running.folder import Folder
from libs.evaluation.running.journal import latest_rows, read_rows
from libs.evaluation.running.runner import tasks_for
from libs.evaluation.running.work import Ended
from tests.fakes.engine import FakeEngine
from tests.fakes.engine_replies import by_constraint
from tests.faults.evaluation_process import SLOTS, begun, child
from tests.faults.upstream_cases import until

KILLS = 20
CASES = 600
SEED = 20


def kept(folder: Folder) -> list[int]:
    """The items on disk, a torn last line left out."""
    return [row.item for _, row in read_rows(folder.rows)] if folder.rows.exists() else []


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def whole_lines(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def item_of(request: dict[str, Any]) -> int:
    """Which item a request asks: each case has a ticker of its own."""
    found = re.search(r"\bT(\d+)\b", "".join(message["content"] for message in request["messages"]))
    assert found is not None
    return int(found[1])


async def kill_somewhere(folder: Folder, fake: FakeEngine, chance: random.Random) -> None:
    """Go on with the run, and kill the process after some more rows, wherever it is then."""
    process, hear = await asyncio.to_thread(child, folder, fake.base_url)
    before, more = size_of(folder.rows), chance.randrange(1, 15_000)
    await until(lambda: size_of(folder.rows) >= before + more)
    await asyncio.sleep(chance.random() * 0.005)
    process.kill()
    await asyncio.to_thread(process.join)
    hear.close()
    assert process.exitcode == -9


async def test_killed_twenty_times_nothing_is_lost_or_kept_twice(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    folder = begun(tmp_path, CASES)
    async with FakeEngine(reply=by_constraint("fine"), slots=SLOTS, delay_s=0.005, chunks=2) as fake:
        on_disk, requests = b"", 0
        for _ in range(KILLS):
            done = set(kept(folder))
            await kill_somewhere(folder, fake, chance)
            assert not done & {item_of(request) for request in fake.requests[requests:]}, "asked though it was kept"
            requests = len(fake.requests)
            now = await asyncio.to_thread(whole_lines, folder.rows)
            assert now.startswith(on_disk), "what was on disk was changed"
            on_disk = now
        assert len(kept(folder)) < CASES, "it was over before the last kill: the kills showed nothing"
        process, hear = await asyncio.to_thread(child, folder, fake.base_url)
        ended = await asyncio.to_thread(hear.recv)
        await asyncio.to_thread(process.join)
        hear.close()
    assert isinstance(ended, Ended), ended
    assert (ended.failed, ended.away) == (0, None)
    assert sorted(kept(folder)) == list(range(CASES))
    assert whole_lines(folder.rows) == folder.rows.read_bytes()
    asked = Counter(item_of(request) for request in fake.requests)
    assert set(asked) == set(range(CASES))
    # What was in flight: being asked, or answered with its row on the way to the disk.
    assert sum(asked.values()) - CASES <= KILLS * 2 * tasks_for(SLOTS)
    rows = list(latest_rows(folder.rows))
    assert {(row.status, row.try_, row.allow) for row in rows} == {("ok", 1, rows[0].allow)}
