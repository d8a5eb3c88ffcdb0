"""Workers of an evaluation die, stop, or lose Postgres in the middle: one row for each item, nothing twice."""

import asyncio
import json
import re
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.evaluation.running.plan import Pinned, Plan
from libs.evaluation.running.row import row_from
from libs.evaluation.sharing.collecting import Collected, Waits
from libs.llm.registry import Registry
from tests.conftest import ROOT
from tests.fakes.engine import FakeEngine
from tests.faults.jobs_process import jobs
from tests.integration.api_app import database_away, until
from tests.integration.evaluation_sharing_cases import Kept, handed_out, pinned, shared_plan, stored, value
from tests.integration.replay_batch_cases import ALLOWS, Past, asked, now_of, remember
from tools.local_stack.postgres import EmbeddedPostgres

SHARE = 4
TICKER = re.compile(r"^(T\d+) forecast")
ALLOW = json.dumps(ALLOWS)
STORED = "select coalesce(string_agg(row, E'\\n'), '') from evaluation_rows where evaluation_id = :id"


def times_asked(fake: FakeEngine) -> Counter[str]:
    """How often each ticker was asked; every case has one of its own."""
    named = (TICKER.match(message["content"]) for body in fake.requests for message in body["messages"])
    return Counter(found[1] for found in named if found is not None)


async def tickers_stored(engine: AsyncEngine, plan: Plan) -> set[str]:
    lines: str = await value(engine, STORED, id=plan.evaluation_id)
    return {row_from(line.encode()).ticker for line in lines.splitlines()}


async def workers_of(engine: AsyncEngine, plan: Plan) -> int:
    counted = "select count(distinct worker) from evaluation_rows where evaluation_id = :id"
    return await value(engine, counted, id=plan.evaluation_id)


def assert_whole(plan: Plan, kept: Kept, done: Collected) -> None:
    assert (done.stopped, done.trouble, done.rows) == (False, None, plan.items)
    assert kept.items == list(range(plan.items))
    assert {(row.status, row.allow) for row in kept.rows} == {("ok", True)}


async def test_one_of_two_is_killed_and_the_other_does_its_work(
    engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    plan, kept = shared_plan(300), Kept()
    async with (
        FakeEngine(reply=ALLOW, delay_s=0.1) as fake,
        jobs(database_url, fake.base_url, tmp_path / "one", share=SHARE) as one,
        jobs(database_url, fake.base_url, tmp_path / "other", share=SHARE) as other,
    ):
        await handed_out(engine, plan)
        collecting = asyncio.create_task(kept.collect(engine, plan))
        await until(lambda: workers_of(engine, plan), lambda count: count == 2)
        await until(lambda: stored(engine, plan.evaluation_id), lambda count: count >= 40)
        one.send_signal(signal.SIGKILL)
        await one.wait()
        before = await tickers_stored(engine, plan)
        asked_before = times_asked(fake)
        done = await collecting
        again = {ticker for ticker, times in times_asked(fake).items() if times > 1}
        assert fake.peak <= 2 * SHARE
        other.send_signal(signal.SIGTERM)
        assert await other.wait() == 0
    assert_whole(plan, kept, done)
    assert len(done.workers) == 2
    assert 40 <= len(before) < plan.items
    assert not again & before
    assert len(again) <= len(asked_before) - len(before)


async def test_told_to_stop_it_gives_its_shards_back_at_once(
    engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    plan, kept = shared_plan(160), Kept()
    async with FakeEngine(reply=ALLOW, delay_s=0.1) as fake:
        async with jobs(database_url, fake.base_url, tmp_path / "one", share=SHARE) as one:
            await handed_out(engine, plan)
            await until(lambda: stored(engine, plan.evaluation_id), lambda count: count >= 20)
            one.send_signal(signal.SIGTERM)
            assert await one.wait() == 0
        queued = "select count(*) from pgqueuer where entrypoint = 'evaluation_shard' and status = 'queued'"
        unfinished = "select count(*) from evaluation_shards where finished_at is null"
        assert await value(engine, queued) == await value(engine, unfinished) >= 1
        assert len(fake.requests) == await stored(engine, plan.evaluation_id)
        async with jobs(database_url, fake.base_url, tmp_path / "other", share=SHARE):
            done = await kept.collect(engine, plan)
        assert set(times_asked(fake).values()) == {1}
    assert_whole(plan, kept, done)


async def test_postgres_goes_away_and_comes_back(
    engine: AsyncEngine, database_url: str, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    plan, kept = shared_plan(120), Kept()
    async with (
        FakeEngine(reply=ALLOW, delay_s=0.1) as fake,
        jobs(database_url, fake.base_url, tmp_path, share=SHARE) as process,
    ):
        await handed_out(engine, plan)
        collecting = asyncio.create_task(kept.collect(engine, plan))
        await until(lambda: stored(engine, plan.evaluation_id), lambda count: count >= 20)
        before = await tickers_stored(engine, plan)
        with database_away(postgres, database_url):
            await asyncio.sleep(1.5)
            assert process.returncode is None
        done = await collecting
        again = {ticker for ticker, times in times_asked(fake).items() if times > 1}
    assert_whole(plan, kept, done)
    assert not again & before
    assert any(line.startswith("waiting for Postgres") for line in kept.told)


def with_draft(folder: Path) -> tuple[Path, Pinned]:
    """A prompts' file that has a version more, with its lock, and that version."""
    document: Any = yaml.safe_load((ROOT / "configs" / "llm_prompts.yaml").read_text())
    versions = document["policy"]["versions"]
    versions["9.9.9"] = versions["1.1.0"] | {"system": "Allow everything."}
    path = folder / "llm_prompts.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    path.with_suffix(".lock").write_text((ROOT / "configs" / "llm_prompts.lock").read_text())
    registry = Registry.load_quietly(path, path.with_suffix(".lock"))
    return path, Pinned("policy", "9.9.9", registry.version("policy", "9.9.9").sha256)


async def refusal(engine: AsyncEngine, plan: Plan) -> str:
    """What a worker that must not ask a plan says of it."""
    kept = Kept()
    await handed_out(engine, plan)
    done = await kept.collect(engine, plan, Waits(trouble_s=0.1))
    assert (done.trouble is None, kept.rows) == (False, [])
    return done.trouble or ""


async def test_a_worker_with_other_prompts_or_rules_leaves_the_work_to_others(
    engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    file, draft = with_draft(tmp_path)
    async with FakeEngine(reply=ALLOW) as fake, jobs(database_url, fake.base_url, tmp_path / "one", share=SHARE):
        other_rules = await refusal(engine, shared_plan(8, rules_sha256="0" * 64))
        other_words = await refusal(engine, shared_plan(8, versions=(replace(pinned(), hash="0" * 64),)))
        other_model = await refusal(engine, shared_plan(8, stamp={"model": {"name": "Other"}}))
        unknown = shared_plan(80, versions=(draft,))
        unknown_there = await refusal(engine, unknown)
        assert times_asked(fake) == {}
        plan, kept = shared_plan(40), Kept()
        await handed_out(engine, plan)
        assert_whole(plan, kept, await kept.collect(engine, plan))
        kept = Kept()
        async with jobs(database_url, fake.base_url, tmp_path / "two", share=SHARE, PROMPTS_FILE=str(file)) as two:
            assert_whole(unknown, kept, await kept.collect(engine, unknown))
            assert {row.worker.partition(":")[2] for row in kept.rows} == {str(two.pid)}
    assert "the rules' file there is another one" in other_rules
    assert "the model there is Lexi, planned is Other" in other_model
    assert "policy 1.0.0 says something else there" in other_words
    assert "policy 9.9.9 is not in the prompts' file there" in unknown_there


async def test_what_comes_round_goes_on_beside_slow_shards_and_batches_share_their_slots(
    engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    await remember(engine, [Past(f"B{number:03d}") for number in range(12)])
    plan, kept = shared_plan(24), Kept()
    came_round = "select count(*) from pgqueuer_log where status = 'successful' and entrypoint = 'outcomes'"
    async with (
        FakeEngine(reply=ALLOW, delay_s=3600) as fake,
        jobs(database_url, fake.base_url, tmp_path, share=SHARE) as process,
    ):
        await handed_out(engine, plan)
        batch = await asked(engine)
        await until(lambda: asyncio.sleep(0.05, fake.active), lambda active: active == SHARE)
        before = await value(engine, came_round)
        await until(lambda: value(engine, came_round), lambda count: count > before)
        assert fake.served == 0
        assert (
            await value(
                engine, "select count(*) from pgqueuer where status = 'picked' and heartbeat < now() - interval '10 s'"
            )
            == 0
        )
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        await until(lambda: asyncio.sleep(0.05, fake.active), lambda active: active == 0)
        fake.delay_s = 0.05
        async with jobs(database_url, fake.base_url, tmp_path, share=SHARE):
            done = await kept.collect(engine, plan)
            ended = await until(lambda: now_of(engine, batch), lambda now: not now.open)
        assert fake.peak == SHARE
    assert_whole(plan, kept, done)
    assert ended.state == "done"
