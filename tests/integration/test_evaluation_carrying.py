"""A shared run as its command carries it out: what workers made comes home before anything is asked anew."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.evaluation.cases.dataset import write_cases
from libs.evaluation.running.folder import Folder
from libs.evaluation.running.journal import Journal, read_rows
from libs.evaluation.running.plan import Plan
from libs.evaluation.running.row import Row
from libs.evaluation.sharing.shards import Cut
from libs.evaluation.sharing.work import finish, had, store, take
from tests.integration.evaluation_sharing_cases import handed_out, shared_plan, value
from tests.unit.evaluation_running_cases import case_number, row_of_item
from tools.llm_eval.carrying import Carried, carry_out_by_workers

FAILED = 3
CASES = 40


async def work(engine: AsyncEngine, plan: Plan, *, failed: Iterable[int] = ()) -> list[int]:
    """Do every shard as a worker does, and return the items that were asked; those that `failed` got no answer."""
    step, asked = await value(engine, "select max(step) from evaluation_shards"), list[int]()
    for shard in range(step):
        mine = await take(engine, plan.evaluation_id, shard, worker="one:1")
        if mine is None:
            continue
        items = list(Cut(plan, shard, step).items)
        there = await had(engine, mine, items)
        new = [item for item in items if item not in there]
        await store(engine, mine, [answer(item, failed=item in failed) for item in new])
        await finish(engine, mine)
        asked += new
    return asked


def answer(item: int, *, failed: bool) -> Row:
    return row_of_item(item, status="unavailable", error="timeout", text=None) if failed else row_of_item(item)


async def working(engine: AsyncEngine, plan: Plan) -> list[int]:
    """Do what is handed out from now on; the items that were asked first."""
    unfinished = "select count(*) from evaluation_shards where finished_at is null"
    while not await value(engine, unfinished):  # noqa: ASYNC110 - what is waited for does not tell
        await asyncio.sleep(0.01)
    return await work(engine, plan)


@pytest.mark.parametrize("home", [0, 25, CASES])
async def test_errors_of_a_run_that_workers_have_are_asked_anew(
    engine: AsyncEngine, tmp_path: Path, *, home: int
) -> None:
    """Whoever asked went away in the middle, or after the last row: the old errors must not come again as new."""
    folder, plan = Folder(tmp_path), shared_plan(CASES)
    write_cases(folder.cases, (case_number(number) for number in range(CASES)))
    await handed_out(engine, plan)
    assert sorted(await work(engine, plan, failed=[FAILED])) == list(range(CASES))
    async with Journal(folder.rows, items=plan.items) as journal:
        for item in range(home):
            await journal.keep(answer(item, failed=item == FAILED))
    busy = asyncio.create_task(working(engine, plan))
    try:
        carried = await carry_out_by_workers(
            folder, plan, engine, stop=asyncio.Event(), asked_by="ann", retry_errors=True
        )
        assert carried.missing == 0
        assert await asyncio.wait_for(busy, 10) == [FAILED]
    finally:
        busy.cancel()
    rows = [row for _, row in read_rows(folder.rows)]
    assert sorted(row.item for row in rows) == sorted([*range(CASES), FAILED])
    assert [(row.status, row.try_) for row in rows if row.item == FAILED] == [("unavailable", 1), ("ok", 2)]


async def test_without_errors_nothing_is_asked_anew(engine: AsyncEngine, tmp_path: Path) -> None:
    folder, plan = Folder(tmp_path), shared_plan(CASES)
    write_cases(folder.cases, (case_number(number) for number in range(CASES)))
    await handed_out(engine, plan)
    await work(engine, plan)
    carried = await carry_out_by_workers(folder, plan, engine, stop=asyncio.Event(), asked_by="ann", retry_errors=True)
    assert carried.missing == 0
    assert sorted(row.item for _, row in read_rows(folder.rows)) == list(range(CASES))
    assert await value(engine, "select count(*) from evaluation_shards where finished_at is null") == 0


async def test_a_retry_that_is_stopped_is_not_over(engine: AsyncEngine, tmp_path: Path) -> None:
    """All items have a row, so what is missing are answers; once told to go on, the workers' new rows come home."""
    folder, plan, stop = Folder(tmp_path), shared_plan(CASES), asyncio.Event()
    write_cases(folder.cases, (case_number(number) for number in range(CASES)))
    async with Journal(folder.rows, items=plan.items) as journal:
        for item in range(CASES):
            await journal.keep(answer(item, failed=item == FAILED))
    stop.set()
    carried = await carry_out_by_workers(folder, plan, engine, stop=stop, asked_by="ann", retry_errors=True)
    assert carried == Carried(missing=1, answered=CASES - 1, why="")
    assert len(list(read_rows(folder.rows))) == CASES
