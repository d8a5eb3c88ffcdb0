"""`ask()` through the real upstreams against a model server that misbehaves."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from libs.llm.client import Client
from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from libs.llm.settings import LLMSettings
from libs.llm.types import Rendered
from libs.upstreams.pool import Upstreams
from libs.upstreams.settings import UpstreamSettings
from libs.upstreams.types import TimeLimits
from tests.fakes.engine import FakeEngine, Fault
from tests.faults.upstream_cases import inside
from tests.unit.llm_cases import GOOD, VERDICT_INPUTS, MemoryCache, Remembering, write_prompts

QUICK = TimeLimits(connect_s=1, first_token_s=0.1, idle_s=0.1, total_s=5)


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for happens in another process's or server's own time
        await asyncio.sleep(0.005)


class Wired:
    """A client on real upstreams."""

    def __init__(self, client: Client, recorder: Remembering, cache: MemoryCache, upstreams: Upstreams) -> None:
        self.client = client
        self.recorder = recorder
        self.cache = cache
        self.upstreams = upstreams


@asynccontextmanager
async def wired(folder: Path, *fakes: FakeEngine) -> AsyncGenerator[Wired]:
    """`lexi` is the first fake, the others are its fallbacks in order."""
    names = ["lexi", *(f"second{number}" for number in range(1, len(fakes)))]
    entries = [
        {
            "name": name,
            "dialect": "vllm",
            "slots": 64,
            "shares": {"forecast": 64},
            "fallback": names[1:] if name == "lexi" else [],
        }
        | ({} if name == "lexi" else {"model": f"Model-{name}", "base_url": fake.base_url})
        for name, fake in zip(names, fakes, strict=True)
    ]
    file = folder / "upstreams.yaml"
    file.write_text(yaml.safe_dump({"upstreams": entries}))
    settings = UpstreamSettings(llm_base_url=fakes[0].base_url, upstreams_file=file)
    upstreams = Upstreams.load(settings, role="forecast")
    registry = Registry.load_quietly(write_prompts(folder))
    recorder, cache = Remembering(), MemoryCache()
    client = Client(
        engine=upstreams,
        prompts=Prompts.build(registry),
        cache=cache,
        recorder=recorder,
        settings=LLMSettings(),
    )
    await upstreams.start()
    try:
        yield Wired(client, recorder, cache, upstreams)
    finally:
        await upstreams.close()


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault.SILENT, "first_token_timeout"),
        (Fault.HEADERS_ONLY, "first_token_timeout"),
        (Fault.PINGS_ONLY, "first_token_timeout"),
        (Fault.STALL, "idle_timeout"),
        (Fault.CUT, "broken_stream"),
        (Fault.MALFORMED, "broken_stream"),
        (Fault.NO_FINISH, "broken_stream"),
        (Fault.CLOSE, "broken_stream"),
        (Fault.GARBAGE, "broken_stream"),
    ],
)
async def test_a_fault_of_the_engine_is_an_answer_with_its_name(tmp_path: Path, fault: Fault, code: str) -> None:
    async with FakeEngine(reply=GOOD) as fake, wired(tmp_path, fake) as desk:
        fake.fault = fault
        answer = await desk.client.ask("verdict", VERDICT_INPUTS, limits=QUICK)
        assert (answer.status, answer.value, answer.text) == ("unavailable", None, "")
        assert answer.error is not None
        assert answer.error.split(":")[0] == code
        [row] = desk.recorder.calls
        assert row.status == ("timed_out" if code.endswith("timeout") else "failed")
        assert row.attempts == len(fake.requests) == 2
        fake.fault = Fault.NONE
        assert (await desk.client.ask("verdict", VERDICT_INPUTS, limits=QUICK)).status == "ok"


async def test_a_busy_engine_is_asked_again_when_it_said(tmp_path: Path) -> None:
    async with FakeEngine(reply=GOOD) as fake, wired(tmp_path, fake) as desk:
        fake.fault_status, fake.retry_after = 503, "0"
        fake.faults.append(Fault.STATUS)
        answer = await desk.client.ask("verdict", VERDICT_INPUTS)
        assert answer.status == "ok"
        assert desk.recorder.calls[0].attempts == 2


async def test_a_wait_beyond_the_deadline_is_not_waited(tmp_path: Path) -> None:
    async with FakeEngine(reply=GOOD) as fake, wired(tmp_path, fake) as desk:
        fake.fault_status, fake.retry_after = 429, "60"
        fake.faults.append(Fault.STATUS)
        answer = await desk.client.ask("verdict", VERDICT_INPUTS)
        assert answer.status == "unavailable"
        assert len(fake.requests) == 1


async def test_a_fallback_takes_over_from_a_dead_engine(tmp_path: Path) -> None:
    async with (
        FakeEngine() as first,
        FakeEngine(reply=GOOD, model="Model-second1") as second,
        wired(tmp_path, first, second) as desk,
    ):
        await first.stop()
        answer = await desk.client.ask("verdict", VERDICT_INPUTS)
        assert (answer.status, answer.upstream, answer.model) == ("ok", "second1", "Model-second1")
        assert desk.recorder.calls[0].model == "Model-second1"


async def test_nonsense_is_repaired_once_and_kept(tmp_path: Path) -> None:
    async with FakeEngine(reply="I like cheese") as fake, wired(tmp_path, fake) as desk:
        answer = await desk.client.ask("verdict", VERDICT_INPUTS)
        assert (answer.status, answer.text) == ("invalid", "I like cheese")
        assert len(fake.requests) == 2
        assert [row.repaired for row in desk.recorder.calls] == [False, True]


async def test_a_caller_that_leaves_frees_the_slot(tmp_path: Path) -> None:
    async with FakeEngine(reply=GOOD, delay_s=60) as fake, wired(tmp_path, fake) as desk:
        task = asyncio.create_task(desk.client.ask("verdict", VERDICT_INPUTS))
        await until(lambda: fake.active)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not fake.active and desk.recorder.calls)
        assert fake.aborted == 1
        assert [row.status for row in desk.recorder.calls] == ["cancelled"]


async def test_an_entry_that_is_taken_out_costs_neither_an_answer_under_way_nor_its_row(tmp_path: Path) -> None:
    slow = FakeEngine(reply=GOOD, delay_s=0.3, model="Model-second1")
    async with FakeEngine() as fake, slow as leaving, wired(tmp_path, fake, leaving) as desk:
        call = asyncio.create_task(desk.client.ask("verdict", VERDICT_INPUTS, upstream="second1"))
        await until(lambda: leaving.active)
        await desk.upstreams.reload({"lexi": replace(inside(desk.upstreams).entry, fallback=())})
        answer = await call
        assert (answer.status, answer.upstream) == ("ok", "second1")
        assert desk.cache.kept == {}
        for use_cache in (True, False):
            gone = await desk.client.ask("verdict", VERDICT_INPUTS, upstream="second1", use_cache=use_cache)
            assert gone.status == "unavailable"
            assert "unknown_upstream" in (gone.error or "")
        assert [row.status for row in desk.recorder.calls] == ["ok", "failed", "failed"]
        assert len(leaving.requests) == 1


async def test_a_fallback_that_is_taken_out_meanwhile_leaves_the_next_one(tmp_path: Path) -> None:
    async with (
        FakeEngine() as first,
        FakeEngine() as gone,
        FakeEngine(reply=GOOD, model="Model-second2") as last,
        wired(tmp_path, first, gone, last) as desk,
    ):
        lexi, second2 = inside(desk.upstreams), inside(desk.upstreams, "second2")
        while lexi.slots.take_now():
            pass
        call = asyncio.create_task(desk.client.ask("verdict", VERDICT_INPUTS))
        await until(lambda: lexi.slots.waiting)
        stays = {"lexi": replace(lexi.entry, fallback=("second2",)), "second2": second2.entry}
        await desk.upstreams.reload(stays)
        lexi.breaker.trip("a test")
        lexi.send_away_if_open()
        answer = await call
        assert (answer.status, answer.upstream) == ("ok", "second2")
        assert gone.requests == []
        while lexi.slots.used:
            lexi.slots.give_back()


async def test_asked_again_the_wire_carries_the_same_but_for_the_priority(tmp_path: Path) -> None:
    async with FakeEngine(reply=GOOD) as fake, wired(tmp_path, fake) as desk:
        await desk.client.ask("verdict", VERDICT_INPUTS, sampling={"seed": 3})
        [call] = desk.recorder.calls
        prompt = Registry.load_quietly(tmp_path / "prompts.yaml").version("verdict", "1.0.0")
        answer = await desk.client.ask_again(
            Rendered(prompt, call.messages), sampling=call.sampling, inputs=call.inputs, replay_of=call.id
        )
        assert (answer.status, answer.cached) == ("ok", False)
        first, second = fake.requests
        assert first.pop("priority") < second.pop("priority")
        assert second == first
        assert second["seed"] == 3
