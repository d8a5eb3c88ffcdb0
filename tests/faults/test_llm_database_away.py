"""Model calls while Postgres is away, and after it is back."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY as METRICS
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.db.engine import DatabaseSettings, create_engine
from libs.llm.cache import ReplyCache
from libs.llm.call_record import CallRecord, new_call_id, rows_of
from libs.llm.calls import Recorder
from libs.llm.client import Client
from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from libs.llm.settings import LLMSettings
from libs.upstreams.types import Message, Sampling, TimeLimits
from tests.conftest import ROOT, migrate
from tests.unit.llm_cases import GOOD, VERDICT_INPUTS, ScriptedEngine, reply, write_prompts
from tools.local_stack.postgres import EmbeddedPostgres

WRITER = """
import asyncio, sys
from pathlib import Path
from pydantic import SecretStr
from libs.db.engine import DatabaseSettings, create_engine
from libs.llm.calls import Recorder
from tests.faults.test_llm_database_away import call

async def main():
    engine = create_engine(DatabaseSettings(database_url=SecretStr(sys.argv[1])), application="test")
    recorder = Recorder(engine, service="forecast", state_dir=Path(sys.argv[2]))
    await recorder.start()
    for number in range(50):
        recorder.record(call(str(number)))
    await recorder.flush()
    print("spooled", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def call(subject: str = "AAPL") -> CallRecord:
    return CallRecord(
        id=new_call_id(),
        prompt_key="verdict",
        prompt_version="1.0.0",
        prompt_hash="ab",
        upstream="lexi",
        model="Lexi",
        status="ok",
        messages=(Message("user", "u"),),
        sampling=Sampling(),
        inputs={},
        reply=GOOD,
        subject=subject,
    )


def counted(outcome: str) -> float:
    return METRICS.get_sample_value("lexi_llm_records_total", {"outcome": outcome}) or 0.0


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    """A Postgres of this test's own, which it may stop."""
    with tempfile.TemporaryDirectory(prefix="lexi-pg-") as folder:
        own = EmbeddedPostgres(Path(folder))
        own.start()
        try:
            migrate(own.url())
            yield own
        finally:
            own.stop()


@pytest.fixture
async def own_engine(server: EmbeddedPostgres) -> AsyncIterator[AsyncEngine]:
    made = create_engine(DatabaseSettings(database_url=SecretStr(server.url())), application="test")
    yield made
    await made.dispose()


@pytest.fixture
def nowhere(tmp_path: Path) -> str:
    """The address of a database that is not there."""
    return f"postgresql://postgres@/postgres?host={tmp_path}"


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - a database's return raises no event here
        await asyncio.sleep(0.02)


async def stored(engine: AsyncEngine) -> set[str]:
    async with engine.connect() as connection:
        return set((await connection.execute(text("select subject from llm_calls"))).scalars().all())


async def test_calls_made_while_postgres_is_away_are_stored_when_it_is_back(
    server: EmbeddedPostgres, own_engine: AsyncEngine, tmp_path: Path
) -> None:
    registry = Registry.load_quietly(write_prompts(tmp_path))
    recorder = Recorder(own_engine, service="forecast", state_dir=tmp_path, rest_s=0.05)
    await recorder.start()
    cache = ReplyCache(own_engine, ttl_s=60)
    client = Client(
        engine=ScriptedEngine(GOOD),
        prompts=Prompts.build(registry),
        cache=cache,
        recorder=recorder,
        settings=LLMSettings(),
    )
    await client.ask("verdict", VERDICT_INPUTS, subject="before")
    await recorder.flush()
    server.kill()
    spooled, replayed = counted("spooled"), counted("replayed")
    for number in range(30):
        answer = await client.ask("verdict", VERDICT_INPUTS, subject=f"away {number}")
        assert answer.status == "ok"
    await recorder.flush()
    assert counted("spooled") == spooled + 30
    server.start()
    await until(lambda: counted("replayed") == replayed + 30)
    await client.ask("verdict", VERDICT_INPUTS, subject="after")
    await recorder.flush()
    await recorder.close()
    assert await stored(own_engine) == {"before", "after", *(f"away {number}" for number in range(30))}
    assert not list((tmp_path / "spool").glob("*.jsonl"))


async def test_a_database_that_dies_and_returns_under_load_has_every_call_once(
    server: EmbeddedPostgres, own_engine: AsyncEngine, tmp_path: Path
) -> None:
    recorder = Recorder(own_engine, service="api", state_dir=tmp_path, rest_s=0.05)
    await recorder.start()
    made = 0
    for step in range(60):
        if step == 15:
            await asyncio.to_thread(server.kill)
        if step == 35:
            await asyncio.to_thread(server.start)
        for _ in range(100):
            kept = rows_of(call(str(made)), "api")
            recorder.keep(kept.call, kept.body if made % 10 == 0 else None)
            made += 1
        await asyncio.sleep(0.02)
    await recorder.flush()
    await recorder.close()
    again = Recorder(own_engine, service="api", state_dir=tmp_path)
    await again.start()
    await again.close()
    async with own_engine.connect() as connection:
        subjects = list((await connection.execute(text("select subject from llm_calls"))).scalars().all())
        bodies = await connection.scalar(text("select count(*) from llm_bodies"))
    assert sorted(map(int, subjects)) == list(range(6000))
    assert bodies == 600
    assert not list((tmp_path / "spool").glob("*.jsonl"))


async def test_a_killed_process_leaves_its_spool_to_the_next(nowhere: str, engine: AsyncEngine, tmp_path: Path) -> None:
    writer = subprocess.Popen(  # noqa: ASYNC220 - returns at once
        [sys.executable, "-c", WRITER, nowhere, str(tmp_path)], cwd=ROOT, env=os.environ, stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    line = await asyncio.to_thread(writer.stdout.readline)
    while line and b"spooled" not in line:
        line = await asyncio.to_thread(writer.stdout.readline)
    writer.send_signal(signal.SIGKILL)
    await asyncio.to_thread(writer.wait)
    writer.stdout.close()
    [spool] = (tmp_path / "spool").glob("forecast*.jsonl")
    with spool.open("ab") as file:
        file.write(b'{"ts": "2026-01-01T00:00:00+00:00", "id": "01')
    torn = counted("torn")
    recorder = Recorder(engine, service="forecast", state_dir=tmp_path)
    await recorder.start()
    await recorder.close()
    assert await stored(engine) == {str(number) for number in range(50)}
    assert counted("torn") == torn + 1


async def test_a_full_queue_drops_the_oldest_and_counts_them(engine: AsyncEngine, tmp_path: Path) -> None:
    recorder = Recorder(engine, service="forecast", state_dir=tmp_path, queue_limit=10)
    dropped = counted("dropped")
    for number in range(25):
        recorder.record(call(str(number)))
    assert counted("dropped") == dropped + 15
    await recorder.start()
    await recorder.close()
    assert await stored(engine) == {str(number) for number in range(15, 25)}


async def test_a_disk_that_refuses_costs_the_calls_and_nothing_else(nowhere: str, tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("in the way")
    away = create_engine(DatabaseSettings(database_url=SecretStr(nowhere)), application="test")
    recorder = Recorder(away, service="forecast", state_dir=tmp_path, rest_s=0.02)
    await recorder.start()
    dropped = counted("dropped")
    recorder.record(call())
    await recorder.flush()
    assert counted("dropped") == dropped + 1
    recorder.record(call())
    await recorder.flush()
    assert counted("dropped") == dropped + 2
    await recorder.close()
    await away.dispose()


async def test_the_cache_is_a_miss_while_postgres_is_away(nowhere: str) -> None:
    away = create_engine(DatabaseSettings(database_url=SecretStr(nowhere)), application="test")
    cache = ReplyCache(away, ttl_s=60)
    found = await asyncio.gather(*(cache.get(f"k{number}") for number in range(20)))
    assert found == [None] * 20
    await cache.put("k1", reply("OK"), call_id=new_call_id())
    assert await cache.get("k1") is None
    await away.dispose()


async def test_a_database_that_hangs_costs_a_call_neither_its_answer_nor_its_deadline(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    listening = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    url = SecretStr(f"postgresql://u@127.0.0.1:{port}/x")
    hung = create_engine(DatabaseSettings(database_url=url), application="test")
    registry = Registry.load_quietly(write_prompts(tmp_path))
    recorder = Recorder(hung, service="forecast", state_dir=tmp_path)
    client = Client(
        engine=ScriptedEngine(GOOD),
        prompts=Prompts.build(registry),
        cache=ReplyCache(hung, ttl_s=60),
        recorder=recorder,
        settings=LLMSettings(),
    )
    answer = await client.ask("verdict", VERDICT_INPUTS, limits=TimeLimits(total_s=0.8))
    assert answer.status == "ok"
    listening.close()
    await hung.dispose()
