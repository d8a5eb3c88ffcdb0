"""Evaluations over workers, on a real Postgres: handing out, taking, keeping rows in order, collecting, ending."""

import asyncio
from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.evaluation.running.plan import Plan
from libs.evaluation.running.row import Row
from libs.evaluation.sharing.collecting import LOOK_S, Waits
from libs.evaluation.sharing.shards import LEAST_ITEMS, MOST_ITEMS, Cut, ShardCases, ShardError, count_of, pack
from libs.evaluation.sharing.store import SharingError, Standing, cancel, hand_out, standing
from libs.evaluation.sharing.work import ShardLost, Taken, beat, finish, had, queue_orphans, say, store, take
from services.jobs.retention import RetentionSettings, forget_evaluations
from tests.integration.api_app import database_away, until
from tests.integration.evaluation_sharing_cases import Kept, handed_out, pinned, queued_shards, shared_plan, value
from tests.unit.evaluation_running_cases import ManyCases, case_number, row_of_item
from tools.local_stack.postgres import EmbeddedPostgres

TWO_VERSIONS = (pinned(), pinned(version="1.1.0"))


async def taken(engine: AsyncEngine, evaluation_id: UUID, shard: int, *, worker: str = "one:1") -> Taken:
    found = await take(engine, evaluation_id, shard, worker=worker)
    assert found is not None
    return found


def rows_of(mine: Taken, cut: Cut, *, only: int | None = None) -> list[Row]:
    return [row_of_item(item, worker=mine.worker) for item in list(cut.order())[:only] if item not in mine.known]


async def test_every_item_lies_in_exactly_one_shard_and_cases_travel_unchanged() -> None:
    plan = shared_plan(103, versions=TWO_VERSIONS, repeat=3)
    step = count_of(plan, workers=4)
    cuts = [Cut(plan, shard, step) for shard in range(step)]
    assert sorted(item for cut in cuts for item in cut.items) == list(range(plan.items))
    assert all(sorted(cut.order()) == list(cut.items) and list(cut.order()) != list(cut.items) for cut in cuts)
    assert list(cuts[0].order()) == list(Cut(plan, 0, step).order())
    assert max(len(list(cut.items)) for cut in cuts) <= MOST_ITEMS
    travelled = ShardCases(cuts[1], pack(case_number(index) for index in cuts[1].cases))
    assert [travelled.case(index) for index in cuts[1].cases] == [case_number(index) for index in cuts[1].cases]


async def test_a_shard_that_is_not_whole_is_refused() -> None:
    cut = Cut(shared_plan(8), 0, 2)
    with pytest.raises(ShardError, match="shard 0: it holds 3 cases, not 4"):
        ShardCases(cut, pack(case_number(index) for index in list(cut.cases)[:3]))
    with pytest.raises(ShardError, match="cannot be read"):
        ShardCases(cut, b"nothing that was packed")


@pytest.mark.parametrize(
    ("cases", "repeat", "workers", "least", "most"),
    [(1, 1, 8, 1, 1), (60, 1, 2, 2, 4), (1000, 1, 2, 16, 16), (100_000, 2, 4, 780, 800), (3, 1000, 1, 3, 3)],
)
async def test_shards_keep_workers_busy_and_hold_little(
    cases: int, repeat: int, workers: int, least: int, most: int
) -> None:
    plan = shared_plan(cases, repeat=repeat)
    count = count_of(plan, workers=workers)
    assert least <= count <= most
    assert count == 1 or plan.items / count >= LEAST_ITEMS / 2


async def test_shards_and_jobs_are_there_together_or_not_at_all(engine: AsyncEngine) -> None:
    plan = shared_plan(200)
    async with engine.connect() as connection:
        assert await hand_out(connection, plan, cases=ManyCases(200), known=(), asked_by="tester")
        await connection.rollback()
    assert await value(engine, "select count(*) from evaluations") == 0
    assert await queued_shards(engine) == []
    assert await handed_out(engine, plan)
    shards = await value(engine, "select count(*) from evaluation_shards")
    assert await queued_shards(engine) == [f"evaluation_shard:{plan.evaluation_id}:{shard}" for shard in range(shards)]
    assert not await handed_out(engine, plan)
    assert len(await queued_shards(engine)) == shards


async def test_open_loop_is_refused(engine: AsyncEngine) -> None:
    with pytest.raises(SharingError, match="rate"):
        await handed_out(engine, shared_plan(10, rate=5.0))


async def test_only_what_is_missing_is_handed_out(engine: AsyncEngine) -> None:
    plan = shared_plan(200)
    step = count_of(plan, workers=plan.workers)
    known = {*Cut(plan, 0, step).items, *list(Cut(plan, 1, step).items)[:5]}
    assert await handed_out(engine, plan, known=known)
    assert await take(engine, plan.evaluation_id, 0, worker="one:1") is None
    mine = await taken(engine, plan.evaluation_id, 1)
    assert mine.known == known & set(Cut(plan, 1, step).items)


async def test_rows_come_once_in_order_until_all_are_there(engine: AsyncEngine) -> None:
    plan = shared_plan(130, versions=TWO_VERSIONS)
    await handed_out(engine, plan)
    step = await value(engine, "select max(step) from evaluation_shards")
    kept = Kept()
    collecting = asyncio.create_task(kept.collect(engine, plan))

    async def work(shard: int, worker: str) -> None:
        mine = await taken(engine, plan.evaluation_id, shard, worker=worker)
        rows = rows_of(mine, Cut(plan, shard, step))
        for begin in range(0, len(rows), 7):
            await store(engine, mine, rows[begin : begin + 7])
            await store(engine, mine, rows[begin : begin + 7])
        await finish(engine, mine)

    await asyncio.gather(*(work(shard, f"host:{shard % 2}") for shard in range(step)))
    done = await collecting
    assert kept.items == list(range(plan.items))
    assert (done.rows, done.stopped, done.trouble) == (plan.items, False, None)
    assert set(kept.told) <= {"host:0 takes part", "host:1 takes part"}


async def test_positions_follow_the_order_in_which_rows_become_visible(engine: AsyncEngine) -> None:
    plan = shared_plan(4)
    await handed_out(engine, plan)
    mine = await taken(engine, plan.evaluation_id, 0)
    insert = text("insert into evaluation_rows (evaluation_id, item, shard, worker, row) values (:id, 0, 0, 'w', '{}')")
    waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    async with engine.connect() as slow:
        await slow.execute(text("select from evaluations where id = :id for no key update"), {"id": plan.evaluation_id})
        quick = asyncio.create_task(store(engine, mine, [row_of_item(1), row_of_item(2)]))
        await until(lambda: value(engine, waits), lambda count: count == 1)
        await slow.execute(insert, {"id": plan.evaluation_id})
        await slow.commit()
    await quick
    async with engine.connect() as connection:
        items = await connection.scalars(text("select item from evaluation_rows order by position"))
        assert list(items) == [0, 1, 2]


async def test_whoever_resumes_collects_what_came_meanwhile(engine: AsyncEngine) -> None:
    plan = shared_plan(40)
    await handed_out(engine, plan)
    step = await value(engine, "select max(step) from evaluation_shards")
    first = await taken(engine, plan.evaluation_id, 0)
    await store(engine, first, rows_of(first, Cut(plan, 0, step)))
    await finish(engine, first)
    kept = Kept()
    kept.stop.set()
    assert (await kept.collect(engine, plan)).stopped
    kept.stop.clear()
    collecting = asyncio.create_task(kept.collect(engine, plan))
    await until(lambda: asyncio.sleep(0, kept.rows), bool)
    collecting.cancel()
    await asyncio.gather(collecting, return_exceptions=True)
    assert not await handed_out(engine, plan)
    for shard in range(1, step):
        mine = await taken(engine, plan.evaluation_id, shard)
        await store(engine, mine, rows_of(mine, Cut(plan, shard, step)))
        await finish(engine, mine)
    done = await kept.collect(engine, plan)
    assert kept.items == list(range(plan.items))
    assert done.workers == ("one:1",)


async def test_who_took_a_shard_last_has_it(engine: AsyncEngine) -> None:
    plan = shared_plan(20)
    await handed_out(engine, plan)
    cut = Cut(plan, 0, await value(engine, "select max(step) from evaluation_shards"))
    first = await taken(engine, plan.evaluation_id, 0)
    await store(engine, first, rows_of(first, cut, only=3))
    second = await taken(engine, plan.evaluation_id, 0, worker="two:2")
    assert await had(engine, second, cut.items) == {row.item for row in rows_of(first, cut, only=3)}
    with pytest.raises(ShardLost):
        await beat(engine, first, waits_for=None)
    await say(engine, first, "too late")
    await finish(engine, first)
    await store(engine, first, [replace(row, text="late") for row in rows_of(first, cut, only=5)])
    await beat(engine, second, waits_for=None)
    now = await standing_of(engine, plan.evaluation_id)
    assert (now.finished, now.troubles, now.working) == (0, (), True)
    assert now.workers == ("two:2",)
    assert await value(engine, "select count(*) from evaluation_rows where row like '%\"late\"%'") == 2
    await finish(engine, second)
    assert await take(engine, plan.evaluation_id, 0, worker="three:3") is None


async def test_who_had_a_shard_before_it_was_handed_out_anew_does_not_have_it(engine: AsyncEngine) -> None:
    """A worker that was asleep while its evaluation was taken back and resumed must not end another's shard."""
    plan = shared_plan(20)
    await handed_out(engine, plan)
    asleep = await taken(engine, plan.evaluation_id, 0, worker="asleep:1")
    async with engine.begin() as connection:
        assert await cancel(connection, plan.evaluation_id, why="cancelled by ann")
    assert await handed_out(engine, plan)
    awake = await taken(engine, plan.evaluation_id, 0, worker="awake:2")
    with pytest.raises(ShardLost):
        await beat(engine, asleep, waits_for=None)
    await say(engine, asleep, "too late")
    await finish(engine, asleep)
    now = await standing_of(engine, plan.evaluation_id)
    assert (now.finished, now.troubles, now.workers) == (0, (), ("awake:2",))
    await beat(engine, awake, waits_for=None)
    assert awake.taken == 1


async def test_what_lacks_nothing_is_not_opened_again(engine: AsyncEngine) -> None:
    plan = shared_plan(20)
    await handed_out(engine, plan)
    async with engine.begin() as connection:
        assert await cancel(connection, plan.evaluation_id, why="cancelled by ann")
    assert not await handed_out(engine, plan, known=range(plan.items))
    assert not (await standing_of(engine, plan.evaluation_id)).open


async def standing_of(engine: AsyncEngine, evaluation_id: UUID) -> Standing:
    async with engine.connect() as connection:
        return await standing(connection, evaluation_id, lately_s=60)


async def test_rows_keep_what_jsonb_would_not(engine: AsyncEngine) -> None:
    plan = shared_plan(1)
    await handed_out(engine, plan)
    mine = await taken(engine, plan.evaluation_id, 0)
    said = replace(rows_of(mine, Cut(plan, 0, 1))[0], text='a\x00b "\u202e\u2028', total_ms=0.1 + 0.2)
    await store(engine, mine, [said])
    kept = Kept()
    await kept.collect(engine, plan)
    assert kept.rows == [said]


async def test_a_cancelled_evaluation_ends_its_workers_and_who_waits_for_it(engine: AsyncEngine) -> None:
    plan = shared_plan(20)
    await handed_out(engine, plan)
    mine = await taken(engine, plan.evaluation_id, 0)
    kept = Kept()
    collecting = asyncio.create_task(kept.collect(engine, plan))
    async with engine.begin() as connection:
        assert await cancel(connection, plan.evaluation_id, why="not needed")
        assert not await cancel(connection, plan.evaluation_id, why="not needed")
    with pytest.raises(ShardLost):
        await store(engine, mine, rows_of(mine, Cut(plan, 0, 1)))
    with pytest.raises(ShardLost):
        await beat(engine, mine, waits_for=None)
    with pytest.raises(SharingError, match=r"ended elsewhere; 20 of 20 items have no row\. Resume"):
        await collecting
    assert await take(engine, plan.evaluation_id, 0, worker="one:1") is None
    assert await handed_out(engine, plan, known={0, 1, 2})
    assert (await taken(engine, plan.evaluation_id, 0)).known == {0, 1, 2}


async def test_a_shard_that_lost_its_job_is_queued_again(engine: AsyncEngine) -> None:
    plan = shared_plan(200)
    await handed_out(engine, plan)
    shards = len(await queued_shards(engine))
    assert await queue_orphans(engine, orphaned_s=0) == 0
    mine = await taken(engine, plan.evaluation_id, 1)
    other = await taken(engine, plan.evaluation_id, 2)
    await finish(engine, other)
    async with engine.begin() as connection:
        await connection.execute(text("delete from pgqueuer where dedupe_key ~ ':[012]$'"))
    assert await queue_orphans(engine, orphaned_s=60) == 0
    assert await queue_orphans(engine, orphaned_s=0) == 2
    await beat(engine, mine, waits_for=None)
    keys = await queued_shards(engine)
    assert len(keys) == shards - 1
    assert f"evaluation_shard:{plan.evaluation_id}:2" not in keys


async def test_nobody_there_is_said_and_ends_in_time(engine: AsyncEngine) -> None:
    plan, kept = shared_plan(20), Kept()
    await handed_out(engine, plan)
    done = await kept.collect(engine, plan, Waits(taken_s=0, trouble_s=0, nobody_s=0.7))
    assert done.trouble is not None
    assert "no worker has shown itself" in done.trouble
    assert any("no worker has taken a shard within" in line for line in kept.told)


async def test_workers_that_cannot_do_it_are_named(engine: AsyncEngine) -> None:
    plan, kept = shared_plan(20), Kept()
    await handed_out(engine, plan)
    mine = await taken(engine, plan.evaluation_id, 0)
    await say(engine, mine, "policy 1.0.0 says something else there")
    done = await kept.collect(engine, plan, Waits(trouble_s=0.2))
    assert done.trouble == "no worker can go on (one:1: policy 1.0.0 says something else there)"
    assert kept.told == ["one:1 takes part", "one:1: policy 1.0.0 says something else there"]


async def test_an_outage_is_not_the_workers_silence(
    engine: AsyncEngine, database_url: str, postgres: EmbeddedPostgres
) -> None:
    """Postgres was away for longer than the patience: whoever is back with it has all of that patience again."""
    plan, kept, now = shared_plan(20), Kept(), [0.0]
    await handed_out(engine, plan)
    await say(engine, await taken(engine, plan.evaluation_id, 0), "the model is away")
    collecting = asyncio.create_task(kept.collect(engine, plan, clock=lambda: now[0]))
    await until(lambda: asyncio.sleep(0, kept.told), lambda told: any("model is away" in line for line in told))
    with database_away(postgres, database_url):
        await until(
            lambda: asyncio.sleep(0, kept.told), lambda told: any("waiting for Postgres" in one for one in told)
        )
        now[0] += 61
    await asyncio.sleep(3 * LOOK_S)
    assert not collecting.done()
    mine = await taken(engine, plan.evaluation_id, 0)
    await store(engine, mine, rows_of(mine, Cut(plan, 0, 1)))
    assert (await collecting).trouble is None
    assert kept.items == list(range(20))


async def test_a_database_that_is_another_is_no_outage(engine: AsyncEngine) -> None:
    plan = shared_plan(20)
    await handed_out(engine, plan)
    async with engine.begin() as connection:
        await connection.execute(text("alter table evaluation_rows rename column position to place"))
    with pytest.raises(ProgrammingError):
        await asyncio.wait_for(Kept().collect(engine, plan), 10)


async def test_what_nobody_comes_for_goes(engine: AsyncEngine) -> None:
    """What keeps it are rows, shards that were finished, and being handed out; not that somebody tries and may not."""
    left, tried, bare, fresh, opened = (shared_plan(20) for _ in range(5))
    for plan in (left, fresh, tried, bare, opened):
        await handed_out(engine, plan)
    for plan in (left, fresh):
        mine = await taken(engine, plan.evaluation_id, 0)
        await store(engine, mine, rows_of(mine, Cut(plan, 0, 1), only=3))
    await aged(engine, "evaluations set created_at")
    await aged(engine, "evaluation_shards set handed_out_at", but=opened)
    await aged(engine, "evaluation_shards set seen_at")
    await aged(engine, "evaluation_rows set at", but=fresh)
    await say(engine, await taken(engine, tried.evaluation_id, 0), "policy 1.0.0 says something else there")
    async with engine.begin() as connection:
        await connection.execute(
            text("delete from evaluation_shards where evaluation_id = :id"), {"id": bare.evaluation_id}
        )
    gone = {left.evaluation_id, tried.evaluation_id, bare.evaluation_id}
    assert set(await forget_evaluations(engine, RetentionSettings())) == gone
    assert await forget_evaluations(engine, RetentionSettings()) == []
    failed = "select state || ': ' || error from evaluations where id = :id"
    for evaluation_id in gone:
        assert (await value(engine, failed, id=evaluation_id)).startswith("failed: nobody came")
    assert await value(engine, "select count(*) from evaluation_rows") == 3
    assert await value(engine, "select count(distinct evaluation_id) from evaluation_shards") == 2


async def aged(engine: AsyncEngine, what: str, *, but: Plan | None = None) -> None:
    """Put moments nine days back, save those of one evaluation."""
    of = "id" if what.startswith("evaluations ") else "evaluation_id"
    statement = f"update {what} = now() - interval '9 days' where {of} is distinct from :but"
    async with engine.begin() as connection:
        await connection.execute(text(statement), {"but": None if but is None else but.evaluation_id})
