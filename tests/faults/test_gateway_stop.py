"""The gateway's end, and its life without a database: no row is lost, and every client is told."""

import asyncio
import signal
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psutil
import pytest

from tests.conftest import migrate
from tests.fakes.engine import FakeEngine, Fault, Reply
from tests.faults.gateway_client import ask, client_that_leaves
from tests.faults.gateway_process import TEMPLATE, Gateway, caller, eventually, gateway_before, place
from tools.local_stack.postgres import EmbeddedPostgres

pytestmark = pytest.mark.xdist_group("gateway_stop")

WORDS = "one two three four five six seven eight"


def as_the_caller_says(body: dict[str, object]) -> Reply:
    """Stall in mid-stream for the user `stuck`, before the first byte for `mute`, work on for `slow`, else answer."""
    user = body.get("user")
    fault = {"stuck": Fault.STALL, "mute": Fault.SILENT}.get(str(user))
    return Reply(WORDS, fault=fault, delay_s=1.5 if user == "slow" else None)


@asynccontextmanager
async def opened(postgres: EmbeddedPostgres) -> AsyncGenerator[tuple[Gateway, FakeEngine], None]:
    """A gateway before one engine."""
    async with AsyncExitStack() as stack:
        fake = await stack.enter_async_context(FakeEngine(model="sage", reply=as_the_caller_says))
        made = gateway_before(postgres, [place("sage", fake.base_url)], [caller("desk")])
        yield await stack.enter_async_context(made), fake


@pytest.fixture
def own_server() -> Iterator[EmbeddedPostgres]:
    """A Postgres of this test's own, which it may kill."""
    with tempfile.TemporaryDirectory(prefix="lexi-pg-", ignore_cleanup_errors=True) as folder:
        server = EmbeddedPostgres(Path(folder))
        server.start()
        try:
            server.ensure_database(TEMPLATE)
            migrate(server.url(TEMPLATE))
            yield server
        finally:
            server.stop()


async def test_a_stop_ends_streams_with_an_error_and_loses_no_row(postgres: EmbeddedPostgres) -> None:
    async with opened(postgres) as (gateway, fake):
        done = [await ask(gateway, "sage", stream=number % 2 == 0) for number in range(20)]
        users = ["stuck"] * 4 + ["slow"] * 4 + ["mute"] * 4
        asked = [
            asyncio.create_task(ask(gateway, "sage", stream=user == "stuck" or number % 2 == 0, user=user))
            for number, user in enumerate(users)
        ]

        async def at_work() -> bool:
            return fake.active == len(users)

        await eventually(at_work, what="all are at the engine")
        leaving = await gateway.stop()
        answers = await asyncio.gather(*asked)
        assert leaving == 0, gateway.log()
        for answer in answers[:4]:
            assert (answer.status, answer.error["code"]) == (200, "shutting_down")
            assert answer.whole, "the body has a proper end"
            assert not answer.done
        assert {answer.status for answer in answers[4:8]} == {200}
        assert {answer.text for answer in answers[4:8]} == {WORDS}, "what could finish did"
        for answer in answers[8:]:
            assert (answer.status, answer.error["code"]) == (503, "shutting_down")
            assert int(answer.headers["retry-after"]) >= 1
        rows = {row.request_id: row for row in await gateway.query("select * from llm_calls")}
        assert set(rows) == {answer.request_id for answer in done + answers}
        for number, answer in enumerate(answers):
            row = rows[answer.request_id]
            assert row.status == ("ok" if users[number] == "slow" else "failed")
            assert (row.error or "").startswith("" if users[number] == "slow" else "shutting_down")
            assert (row.tokens_out > 0) == (users[number] != "mute")
            assert row.http_status == answer.status
        assert "Traceback" not in gateway.log()

        async def free() -> bool:
            return fake.active == 0

        await eventually(free, what="the engine is free")


async def test_a_killed_database_stops_no_answer_and_loses_no_row(own_server: EmbeddedPostgres) -> None:
    async with opened(own_server) as (gateway, fake):
        ids = [(await ask(gateway, "sage")).request_id for _ in range(5)]
        assert own_server.pid is not None
        kill_postgres(own_server)
        for number in range(30):
            answer = await ask(gateway, "sage", stream=number % 2 == 0)
            assert (answer.status, answer.text) == (200, WORDS)
            ids.append(answer.request_id)
        answer = await ask(gateway, "sage", temperature=0, headers={"x-lexi-cache": "on"})
        assert (answer.status, answer.text) == (200, WORDS), "the cache's database being away is no error either"
        ids.append(answer.request_id)
        async with client_that_leaves(gateway, "sage", stream=True, user="stuck") as client:

            async def at_work() -> bool:
                return fake.active == 1

            await eventually(at_work, what="it is at the engine")
            client.leave()
            ids.append(client.request_id)
        own_server.start()

        async def all_on_record() -> bool:
            found = {row[0] for row in await gateway.query("select request_id from llm_calls")}
            return found == set(ids)

        await eventually(all_on_record, what="every request is a row")


def kill_postgres(server: EmbeddedPostgres) -> None:
    """Kill it with all its children, as a machine's memory killer does."""
    assert server.pid is not None
    parent = psutil.Process(server.pid)
    for process in [parent, *parent.children(recursive=True)]:
        process.send_signal(signal.SIGKILL)
    parent.wait(10)
