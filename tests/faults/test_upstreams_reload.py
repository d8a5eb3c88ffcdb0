"""The file of upstreams changes under a running process, or breaks: what was good goes on, calls in flight too."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import pytest
from prometheus_client import REGISTRY

from libs.upstreams import pool
from libs.upstreams import upstream as upstream_module
from libs.upstreams.clock import CallClock
from libs.upstreams.config import UpstreamEntry
from libs.upstreams.errors import BreakerOpen, NoSlot, UnknownUpstream
from libs.upstreams.pool import Upstreams
from libs.upstreams.settings import UpstreamSettings
from libs.upstreams.upstream import Upstream
from libs.upstreams.visit import Visit
from tests.fakes.engine import FakeEngine, Fault
from tests.faults.upstream_cases import ASK, PATIENT, inside, until, upstreams_on

LEXI = "- {name: lexi, slots: 8, shares: {forecast: 4}}\n"


def entry(name: str, fake: FakeEngine, more: str = "") -> str:
    return f"- {{name: {name}, model: Other, base_url: '{fake.base_url}', slots: 8, shares: {{forecast: 4}}{more}}}\n"


def put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def move(path: Path, to: Path) -> None:
    path.rename(to)


def write(path: Path, *entries: str) -> None:
    put(path, "upstreams:\n" + "".join(entries))


@asynccontextmanager
async def running(path: Path, fake: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Upstreams]:
    """Upstreams that follow a file, looked at often."""
    for name in ("POLL_S", "SETTLE_S", "DRAINED_S"):
        monkeypatch.setattr(pool, name, 0.01)
    settings = UpstreamSettings.model_validate({"upstreams_file": path, "llm_base_url": fake.base_url})
    upstreams = Upstreams.load(settings, role="forecast")
    await upstreams.start()
    try:
        yield upstreams
    finally:
        await upstreams.close()


def names(upstreams: Upstreams) -> list[str]:
    return [status.name for status in upstreams.status()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "upstreams.yaml"


async def test_an_entry_comes_is_used_and_goes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, LEXI)
    async with FakeEngine() as fake, FakeEngine(model="Other") as other, running(path, fake, monkeypatch) as upstreams:
        kept = inside(upstreams)
        write(path, LEXI, entry("new", other))
        await until(lambda: names(upstreams) == ["lexi", "new"])
        assert upstreams.models() == ("Lexi", "Other")
        assert inside(upstreams, "new").pulse.state == "up"
        assert (await upstreams.chat(ASK, PATIENT, upstream="new")).model == "Other"
        labels = {"upstream": "new"}
        assert REGISTRY.get_sample_value("lexi_upstream_slots_in_use", labels) == 0
        write(path, LEXI)
        await until(lambda: names(upstreams) == ["lexi"])
        assert inside(upstreams) is kept
        assert upstreams.models() == ("Lexi",)
        with pytest.raises(UnknownUpstream):
            upstreams.model_of("new")
        await until(lambda: REGISTRY.get_sample_value("lexi_upstream_slots_in_use", labels) is None)
        assert REGISTRY.get_sample_value("lexi_upstream_calls_total", labels | {"outcome": "ok"}) is None
        assert upstreams.trouble is None


async def test_a_call_in_flight_ends_well_at_an_entry_that_is_gone_and_then_it_is_closed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = FakeEngine(model="Other", reply="word " * 30, chunks=30, gap_s=0.01)
    async with FakeEngine() as fake, slow as other:
        write(path, LEXI, entry("old", other))
        async with running(path, fake, monkeypatch) as upstreams:
            gone = inside(upstreams, "old")
            call = asyncio.create_task(upstreams.chat(ASK, PATIENT, upstream="old"))
            await until(lambda: other.active == 1)
            write(path, LEXI)
            await until(lambda: names(upstreams) == ["lexi"])
            assert not call.done()
            assert (await call).text == "word " * 30
            await until(lambda: gone.wire.open_connections == 0)


async def test_an_entry_that_moves_is_another_upstream_and_one_that_changes_otherwise_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeEngine() as fake, FakeEngine(model="Other") as here, FakeEngine(model="Other") as there:
        write(path, LEXI, entry("one", here))
        async with running(path, fake, monkeypatch) as upstreams:
            first = inside(upstreams, "one")
            write(path, LEXI, entry("one", here, ", queue_tokens: 77, fallback: [lexi]"))
            await until(lambda: upstreams.fallbacks_of("one") == ("lexi",))
            assert inside(upstreams, "one") is first
            assert first.slots.queue_tokens == 77
            write(path, LEXI, entry("one", there))
            await until(lambda: inside(upstreams, "one") is not first)
            await upstreams.chat(ASK, PATIENT, upstream="one")
            assert (len(here.requests), len(there.requests)) == (0, 1)
            assert REGISTRY.get_sample_value("lexi_upstream_slots_in_use", {"upstream": "one"}) == 0


@pytest.mark.parametrize("broken", ["upstreams: [", "upstreams:\n", "upstreams:\n- {name: lexi, slots: 0}\n", ""])
async def test_a_broken_file_changes_nothing_and_says_so_until_it_is_mended(
    path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    async with FakeEngine() as fake, FakeEngine(model="Other") as other:
        write(path, LEXI, entry("other", other))
        async with running(path, fake, monkeypatch) as upstreams:
            put(path, broken)
            await until(lambda: upstreams.trouble is not None)
            assert str(path) in (upstreams.trouble or "")
            assert names(upstreams) == ["lexi", "other"]
            assert (await upstreams.chat(ASK, PATIENT, upstream="other")).text == "OK"
            write(path, LEXI)
            await until(lambda: names(upstreams) == ["lexi"])
            assert upstreams.trouble is None


async def test_a_missing_file_changes_nothing_and_the_same_one_back_is_well(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, LEXI)
    async with FakeEngine() as fake, running(path, fake, monkeypatch) as upstreams:
        kept = inside(upstreams)
        move(path, path.with_suffix(".away"))
        await until(lambda: upstreams.trouble is not None)
        assert "gone" in (upstreams.trouble or "")
        assert (await upstreams.chat(ASK, PATIENT)).text == "OK"
        move(path.with_suffix(".away"), path)
        await until(lambda: upstreams.trouble is None)
        assert inside(upstreams) is kept


async def test_lexi_stays_as_the_environment_said_at_the_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, LEXI)
    async with FakeEngine() as fake, FakeEngine(model="Other") as other, running(path, fake, monkeypatch) as upstreams:
        monkeypatch.setenv("LLM_BASE_URL", other.base_url)
        monkeypatch.setenv("LLM_MODEL", "Changed")
        write(path, "- {name: lexi, slots: 8, shares: {forecast: 2}}\n")
        await until(lambda: upstreams.status()[0].slots == 2)
        assert (upstreams.model_of("lexi"), inside(upstreams).entry.base_url) == ("Lexi", fake.base_url)


async def test_a_role_that_loses_its_share_waits_no_longer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, "- {name: lexi, slots: 8, shares: {forecast: 1}}\n")
    async with FakeEngine() as fake, running(path, fake, monkeypatch) as upstreams:
        fake.fault = Fault.SILENT
        held = asyncio.create_task(upstreams.chat(ASK, PATIENT))
        await until(lambda: fake.active == 1)
        waiting = asyncio.create_task(upstreams.chat(ASK, PATIENT))
        await until(lambda: inside(upstreams).slots.waiting == 1)
        write(path, "- {name: lexi, slots: 8}\n")
        with pytest.raises(NoSlot, match="no share"):
            await waiting
        assert upstreams.models() == ()
        held.cancel()


async def test_closing_while_an_entry_is_being_let_go_leaves_nothing_open(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeEngine() as fake, FakeEngine(model="Other") as other:
        other.fault = Fault.SILENT
        write(path, LEXI, entry("old", other))
        async with running(path, fake, monkeypatch) as upstreams:
            call = asyncio.create_task(upstreams.chat(ASK, PATIENT, upstream="old"))
            await until(lambda: other.active == 1)
            write(path, LEXI)
            await until(lambda: names(upstreams) == ["lexi"])
        await until(lambda: other.active == 0)
        assert isinstance((await asyncio.gather(call, return_exceptions=True))[0], Exception)


@pytest.mark.parametrize("replica", [True, False])
async def test_those_in_line_at_an_entry_that_goes_leave_for_a_replica_that_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, replica: bool
) -> None:
    async def ask(place: Upstream) -> None:
        async with Visit(place, CallClock(PATIENT, monotonic()), priority=4, tokens=10):
            pass

    async with FakeEngine() as fake, FakeEngine(model="Other") as other, FakeEngine(model="Other") as twin:
        stays = LEXI + entry("twin", twin) if replica else LEXI
        write(path, stays, entry("old", other))
        async with running(path, fake, monkeypatch) as upstreams:
            old = inside(upstreams, "old")
            for _ in range(4):
                assert old.slots.take_now()
            own = asyncio.create_task(upstreams.chat(ASK, PATIENT, upstream="old"))
            outside = asyncio.create_task(ask(old))
            await until(lambda: old.slots.waiting == 2)
            write(path, stays)
            await until(lambda: "old" not in names(upstreams))
            assert old.slots.waiting == (1 if replica else 2)
            for _ in range(4):
                old.slots.give_back()
            if replica:
                with pytest.raises(BreakerOpen, match="taken out"):
                    await outside
            else:
                await outside
            assert (await own).text == "OK"
            await until(lambda: old.wire.open_connections == 0)


async def test_those_in_line_for_one_model_are_not_sent_on_as_asking_for_another(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(place: Upstream) -> str:
        async with Visit(place, CallClock(PATIENT, monotonic()), priority=4, tokens=10) as visit:
            return visit.upstream.entry.model

    async with FakeEngine() as fake, FakeEngine(model="Other") as other:
        write(path, LEXI, entry("one", other))
        async with running(path, fake, monkeypatch) as upstreams:
            before = inside(upstreams, "one")
            for _ in range(4):
                assert before.slots.take_now()
            call = asyncio.create_task(ask(before))
            await until(lambda: before.slots.waiting == 1)
            write(path, LEXI, entry("one", other).replace("model: Other", "model: Large"))
            await until(lambda: upstreams.models() == ("Lexi", "Large"))
            assert inside(upstreams, "one") is not before
            for _ in range(4):
                before.slots.give_back()
            assert await call == "Other"


async def test_a_model_list_of_another_form_stops_neither_the_start_nor_the_looking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = 0

    async def odd(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal looks
        while await reader.readline():
            while await reader.readline() != b"\r\n":
                pass
            looks += 1
            body = b'{"data": [{"id": "m", "owned_by": ["me", {}]}]}'
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        writer.close()

    monkeypatch.setattr(upstream_module, "HOSTED_BEAT_S", 0.01)
    server = await asyncio.start_server(odd, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    upstreams = Upstreams({"lexi": UpstreamEntry("lexi", "m", url, "auto", 4, {"forecast": 4})}, role="forecast")
    await upstreams.start()
    assert upstreams.status()[0].state == "up"
    seen = looks
    await until(lambda: looks > seen + 2)
    await upstreams.close()
    server.close()


async def test_a_look_that_goes_wrong_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "BEAT_S", 0.01)
    async with FakeEngine() as fake, upstreams_on(fake) as upstreams:
        pulse, wrong = inside(upstreams).pulse, 0

        def take(now: float, beat: object) -> None:
            nonlocal wrong
            wrong += 1
            raise LookupError

        with monkeypatch.context() as patched:
            patched.setattr(pulse, "take", take)
            await until(lambda: wrong >= 2)
        await fake.stop()
        await until(lambda: pulse.state == "down")
