"""Rows on their way from a worker to Postgres: in groups, told of only when stored, and none forgotten at the end."""

import asyncio

import pytest

from libs.evaluation.running.row import Row
from services.jobs.shard_work import Rows
from tests.unit.evaluation_running_cases import row_of_item


class Storing:
    """Stands for Postgres: keeps groups one by one, as slowly as it is told to, or refuses them."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.begun, self.free = asyncio.Event(), asyncio.Event()
        self.free.set()
        self.refuses = False
        self.at_once = 0

    async def __call__(self, rows: list[Row]) -> None:
        self.at_once += 1
        self.begun.set()
        assert self.at_once == 1
        await self.free.wait()
        self.at_once -= 1
        if self.refuses:
            raise ConnectionError("Postgres is away")
        self.groups.append([row.item for row in rows])


async def test_rows_that_come_while_a_group_is_stored_make_the_next_group() -> None:
    storing = Storing()
    rows = Rows(storing)
    storing.free.clear()
    first = [asyncio.create_task(rows.keep(row_of_item(item))) for item in range(3)]
    await storing.begun.wait()
    later = [asyncio.create_task(rows.keep(row_of_item(item))) for item in range(3, 50)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in [*first, *later])
    storing.free.set()
    await asyncio.gather(*first, *later)
    assert storing.groups == [[0, 1, 2], list(range(3, 50))]


async def test_whoever_brought_a_row_hears_that_it_was_not_stored_and_the_next_one_is_tried() -> None:
    storing = Storing()
    rows = Rows(storing)
    storing.refuses = True
    came = await asyncio.gather(*(rows.keep(row_of_item(item)) for item in range(5)), return_exceptions=True)
    assert [type(each) for each in came] == [ConnectionError] * 5
    storing.refuses = False
    await rows.keep(row_of_item(5))
    assert storing.groups == [[5]]


async def test_what_came_is_stored_though_nobody_waits_for_it_any_more() -> None:
    storing = Storing()
    rows = Rows(storing)
    task = asyncio.create_task(rows.keep(row_of_item(7)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await rows.close()
    assert storing.groups == [[7]]
