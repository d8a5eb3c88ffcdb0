"""The watchdog before a Docker engine on a Unix socket: what it asks, when it restarts, and what can go wrong."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from services.watchdog import docker, restarts
from services.watchdog.alarm import Alarm
from services.watchdog.main import open_parts
from services.watchdog.plan import Plan
from services.watchdog.restarts import Restarter
from services.watchdog.settings import make_plan
from services.watchdog.vitals import READ_AT, Vitals
from services.watchdog.watch import Watch
from tests.fakes.docker_engine import DockerEngine, Trouble

GROWN = [9000, 10753, 10753, 10753]
NO_RESTART = {Trouble.NO_PROGRAM, Trouble.PROGRAM_FAILS, Trouble.NOT_FRAMED, Trouble.CUT, Trouble.NOT_JSON,
              Trouble.GONE, Trouble.STOPPED, Trouble.FORBIDDEN, Trouble.PROGRAM_HANGS}  # fmt: skip


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Told(Alarm):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.texts: list[str] = []

    def tell(self, kind: str, text: str) -> None:
        self.kinds.append(kind)
        self.texts.append(text)


class House:
    """A watch over a fake engine, minute by minute."""

    def __init__(self, engine: DockerEngine, watch: Watch, *, clock: Clock, told: Told, vitals: Vitals) -> None:
        self.engine, self.clock, self.told, self.vitals = engine, clock, told, vitals
        self._watch = watch

    async def minutes(self, count: int) -> None:
        for _ in range(count):
            self.clock.now += 60
            await self._watch.step()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker, "LOOK_AGAIN_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(restarts, "ASK_EVERY_S", 0.01)


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    def planned(engine: DockerEngine, **settings: str) -> Plan:
        own = {"CONTAINER": "llm", "DOCKER_HOST": engine.host, "RESTART_TIMEOUT_S": "1", "STOP_GRACE_S": "0"}
        for name, value in (own | settings).items():
            monkeypatch.setenv(f"WATCHDOG_{name}", value)
        return make_plan()

    return planned


@asynccontextmanager
async def house(engine: DockerEngine, plan: Plan) -> AsyncGenerator[House]:
    async with open_parts(plan) as parts:
        clock, told, vitals = Clock(), Told(), Vitals(limit_mib=plan.limit_mib, budget=plan.budget)
        restarter = Restarter(plan, parts.container, parts.client)
        watch = Watch(plan, reader=parts.reader, restarter=restarter, alarm=told, vitals=vitals, clock=clock)
        yield House(engine, watch, clock=clock, told=told, vitals=vitals)


def counted(name: str, **labels: str) -> float:
    value = REGISTRY.get_sample_value(f"lexi_watchdog_{name}", labels)
    return 0.0 if value is None else value


async def test_it_asks_nvidia_smi_in_the_container_and_restarts_after_the_third(
    tmp_path: Path, plan: Callable[..., Plan]
) -> None:
    before = counted("restarts_total", outcome="restarted")
    async with DockerEngine(tmp_path / "s", GROWN) as engine, house(engine, plan(engine, STOP_GRACE_S="17")) as home:
        await home.minutes(3)
        assert engine.restarts == []
        assert counted("over_in_a_row") == 2
        await home.minutes(1)
        assert engine.restarts == ["POST /v1.45/containers/llm/restart?t=17"]
        assert engine.starts == 2
    smi = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
    assert engine.commands == [smi] * 4
    assert home.told.kinds == ["watchdog_restart"]
    assert counted("restarts_total", outcome="restarted") == before + 1
    assert counted("memory_bytes") == 10753 * 2**20
    assert counted("over_in_a_row") == 0


async def test_cool_down_and_budget_hold_and_the_end_of_the_budget_is_told_once(
    tmp_path: Path, plan: Callable[..., Plan]
) -> None:
    async with DockerEngine(tmp_path / "s", [10753]) as engine, house(engine, plan(engine)) as home:
        await home.minutes(3 + 5 + 5)
        assert len(engine.restarts) == 3
        await home.minutes(10)
        assert len(engine.restarts) == 3
        assert home.told.kinds == ["watchdog_restart"] * 3 + ["watchdog_budget"]
        assert counted("budget_spent") == 1
        assert "budget of 3 restarts in 3600 s is used up" in home.vitals.ready()[1]
        engine.readings = [9000]
        await home.minutes(1)
        assert home.vitals.ready() == (True, "green  memory\ngreen  budget\ngreen  restart\n")
        assert counted("budget_spent") == 0
        engine.readings = [10753]
        home.clock.now += 3600
        await home.minutes(3)
        assert len(engine.restarts) == 4


@pytest.mark.parametrize("trouble", sorted(NO_RESTART))
async def test_what_cannot_be_read_counts_neither_way_and_says_why(
    trouble: Trouble, tmp_path: Path, plan: Callable[..., Plan]
) -> None:
    async with (
        DockerEngine(tmp_path / "s", [10753]) as engine,
        house(engine, plan(engine, READ_TIMEOUT_S="0.2")) as home,
    ):
        await home.minutes(2)
        engine.troubles = {trouble}
        with capture_logs() as logs:
            await home.minutes(3)
        said = [line["reason"] for line in logs if line["event"] == "unreadable"]
        assert len(said) == 3
        assert all(said), said
        good, lines = home.vitals.ready()
        assert not good
        assert said[-1] in lines
        assert engine.restarts == []
        engine.troubles, engine.hung = set(), 0
        await home.minutes(1)
        assert len(engine.restarts) == 1


async def test_what_was_counted_of_one_life_of_the_container_does_not_count_for_the_next(
    tmp_path: Path, plan: Callable[..., Plan]
) -> None:
    async with DockerEngine(tmp_path / "s", [10753]) as engine, house(engine, plan(engine)) as home:
        await home.minutes(2)
        engine.starts += 1  # by hand, or by itself
        await home.minutes(2)
        assert counted("over_in_a_row") == 2
        engine.id = "f" * 64  # removed, and another one made under its name
        await home.minutes(2)
        assert engine.restarts == []
        await home.minutes(1)
        assert len(engine.restarts) == 1


async def test_a_reading_during_which_the_container_was_started_anew_belongs_to_nobody(
    tmp_path: Path, plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with DockerEngine(tmp_path / "s", [10753]) as engine, house(engine, plan(engine)) as home:
        stream: Any = engine._stream

        async def late(*ends: Any) -> None:
            engine.starts += 1
            await stream(*ends)

        monkeypatch.setattr(engine, "_stream", late)
        await home.minutes(1)
        assert "llm was started anew while it was read" in home.vitals.ready()[1]
        assert counted("over_in_a_row") == 0


async def test_a_name_that_docker_takes_for_the_id_of_another_is_refused(
    tmp_path: Path, plan: Callable[..., Plan]
) -> None:
    async with (
        DockerEngine(tmp_path / "s", [10753], name="stranger") as engine,
        house(engine, plan(engine, CONTAINER="109")) as home,
    ):
        await home.minutes(5)
        assert "no container is named 109: Docker took it for the id of stranger" in home.vitals.ready()[1]
        assert (engine.commands, engine.restarts) == ([], [])


async def test_an_id_as_docker_shows_it_names_a_container(tmp_path: Path, plan: Callable[..., Plan]) -> None:
    async with (
        DockerEngine(tmp_path / "s", [10753]) as engine,
        house(engine, plan(engine, CONTAINER="109c0ffee109")) as home,
    ):
        await home.minutes(3)
        assert len(engine.restarts) == 1


async def test_read_elsewhere_and_restarted_by_docker_it_counts_one_life_too(
    tmp_path: Path, plan: Callable[..., Plan]
) -> None:
    settings = {"READER": "command", "READ_COMMAND": "echo 10753"}
    async with DockerEngine(tmp_path / "s", [0]) as engine, house(engine, plan(engine, **settings)) as home:
        await home.minutes(2)
        engine.starts += 1
        await home.minutes(2)
        assert engine.restarts == []
        engine.running = False  # somebody stopped it: what fills the card is not it
        await home.minutes(3)
        assert "container llm is not running" in home.vitals.ready()[1]
        assert engine.restarts == []
        engine.running = True
        await home.minutes(1)
        assert len(engine.restarts) == 1


async def test_a_card_of_which_nothing_is_said_is_unreadable(tmp_path: Path, plan: Callable[..., Plan]) -> None:
    async with DockerEngine(tmp_path / "s", [9000]) as engine, house(engine, plan(engine, GPU="0,1")) as home:
        await home.minutes(1)
        assert "1 readings for 2 cards: 9000" in home.vitals.ready()[1]


async def test_commands_that_hang_do_not_pile_up(tmp_path: Path, plan: Callable[..., Plan]) -> None:
    async with (
        DockerEngine(tmp_path / "s", [9000], {Trouble.PROGRAM_HANGS}) as engine,
        house(engine, plan(engine, READ_TIMEOUT_S="0.2")) as home,
    ):
        await home.minutes(4)
        assert len(engine.commands) == 1
        assert "still runs" in home.vitals.ready()[1]


async def test_a_socket_that_went_and_came_back_is_found_again(tmp_path: Path, plan: Callable[..., Plan]) -> None:
    engine = DockerEngine(tmp_path / "s", [10753])
    async with house(engine, plan(engine)) as home:
        await home.minutes(1)
        assert "does not answer" in home.vitals.ready()[1]
        async with engine:
            await home.minutes(2)
        await home.minutes(9)
        assert home.told.kinds == ["watchdog_blind"] * 0
        await home.minutes(1)
        assert home.told.kinds == ["watchdog_blind"]
        async with engine:
            await home.minutes(1)
            assert len(engine.restarts) == 1


async def test_a_container_that_docker_stopped_but_could_not_start_is_started(
    tmp_path: Path, plan: Callable[..., Plan]
) -> None:
    async with (
        DockerEngine(tmp_path / "s", [10753], {Trouble.START_FAILS}) as engine,
        house(engine, plan(engine)) as home,
    ):
        await home.minutes(3)
        assert engine.running
        assert engine.asked[-1] == "POST /v1.45/containers/llm/start"
        assert home.told.kinds == ["watchdog_restart"]


async def test_a_restart_that_comes_later_than_asked_for_is_one(tmp_path: Path, plan: Callable[..., Plan]) -> None:
    settings = {"RESTART_TIMEOUT_S": "0.2"}
    async with (
        DockerEngine(tmp_path / "s", [10753], {Trouble.LATE}) as engine,
        house(engine, plan(engine, **settings)) as home,
    ):
        await home.minutes(3)
        assert engine.starts == 2
        assert home.told.kinds == ["watchdog_restart"]


async def test_a_restart_that_is_refused_is_told_and_counts_against_the_budget(
    tmp_path: Path, plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with DockerEngine(tmp_path / "s", [10753]) as engine, house(engine, plan(engine)) as home:
        reply: Any = engine._lifecycle

        async def refusing(path: str) -> tuple[int, object]:
            return (403, {"message": "not through this proxy"}) if "/restart" in path else await reply(path)

        monkeypatch.setattr(engine, "_lifecycle", refusing)
        before = counted("restarts_total", outcome="failed")
        await home.minutes(60)
        assert counted("restarts_total", outcome="failed") == before + 3
        assert home.told.kinds == ["watchdog_restart_failed"] * 3 + ["watchdog_budget"]
        assert "403: not through this proxy" in home.told.texts[0]
        assert engine.starts == 1


class Web(ThreadingHTTPServer):
    """What is drained and asked for its health: `unwell` answers 503 before the first 200."""

    def __init__(self, unwell: int, *, takes_s: float = 0) -> None:
        self.unwell = unwell
        self.takes_s = takes_s
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Web  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        self.server.unwell -= self.command == "GET"
        time.sleep(self.server.takes_s if self.command == "POST" else 0)
        self.send_response(503 if self.command == "GET" and self.server.unwell >= 0 else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET  # noqa: N815 - the name that http.server looks for

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as http.server has it
        pass


@asynccontextmanager
async def web(unwell: int, *, takes_s: float = 0) -> AsyncGenerator[Web]:
    server = Web(unwell, takes_s=takes_s)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        await asyncio.to_thread(server.shutdown)
        thread.join()
        server.server_close()


async def test_it_drains_before_and_waits_for_health_after(tmp_path: Path, plan: Callable[..., Plan]) -> None:
    drained = tmp_path / "drained"
    async with web(unwell=2) as server, DockerEngine(tmp_path / "s", [10753]) as engine:
        settings = {
            "DRAIN_URL": f"{server.url}/drain",
            "DRAIN_COMMAND": f"sh -c 'echo $0 >> {drained}' now",
            "HEALTH_URL": f"{server.url}/health",
        }
        before = counted("restarts_total", outcome="back")
        async with house(engine, plan(engine, **settings)) as home:
            await home.minutes(3)
        assert server.asked == ["POST /drain", *["GET /health"] * 3]
        assert drained.read_text() == "now\n"
        assert counted("restarts_total", outcome="back") == before + 1


async def test_a_drain_has_all_of_its_time(tmp_path: Path, plan: Callable[..., Plan]) -> None:
    """More than the 5 s after which the client would give up by itself."""
    async with web(unwell=0, takes_s=5.5) as server, DockerEngine(tmp_path / "s", [10753]) as engine:
        async with house(engine, plan(engine, DRAIN_URL=f"{server.url}/drain")) as home:
            with capture_logs() as logs:
                await home.minutes(3)
        assert [line for line in logs if line["event"] == "drain_failed"] == []
        assert engine.starts == 2


async def test_a_drain_has_no_more_than_its_time(tmp_path: Path, plan: Callable[..., Plan]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = {"DRAIN_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/drain", "DRAIN_TIMEOUT_S": "0.2"}
        async with DockerEngine(tmp_path / "s", [10753]) as engine, house(engine, plan(engine, **settings)) as home:
            with capture_logs() as logs:
                await home.minutes(3)
            assert [line["error"] for line in logs if line["event"] == "drain_failed"] == ["TimeoutError"]
            assert engine.starts == 2


async def test_while_a_restart_is_waited_for_nobody_is_blind(
    tmp_path: Path, plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[float]()
    async with DockerEngine(tmp_path / "s", [10753]) as engine, house(engine, plan(engine)) as home:
        back: Any = Restarter.back

        async def looked_at(restarter: Restarter) -> bool | None:
            seen.append(counted("restarting"))
            READ_AT.set(0)  # as after a long wait
            return await back(restarter)

        monkeypatch.setattr(Restarter, "back", looked_at)
        await home.minutes(3)
        assert seen == [1]
        assert counted("restarting") == 0
        assert counted("read_timestamp_seconds") > 0  # set at its end: the next reading is a minute away


async def test_one_that_does_not_come_back_is_told(tmp_path: Path, plan: Callable[..., Plan]) -> None:
    async with web(unwell=10**6) as server, DockerEngine(tmp_path / "s", [10753]) as engine:
        settings = {"HEALTH_URL": f"{server.url}/health", "HEALTH_TIMEOUT_S": "0.1"}
        async with house(engine, plan(engine, **settings)) as home:
            await home.minutes(3)
            assert home.told.kinds == ["watchdog_restart_failed"]
            assert f"llm did not answer {server.url}/health after its restart" in home.vitals.ready()[1]


@pytest.mark.parametrize(
    "settings",
    [
        {"DRAIN_COMMAND": "sleep 60", "DRAIN_TIMEOUT_S": "0.1"},
        {"DRAIN_COMMAND": "false"},
        {"DRAIN_COMMAND": "/no/such/program"},
        {"DRAIN_URL": "http://127.0.0.1:1/drain"},
    ],
)
async def test_a_drain_that_fails_holds_nothing_up(
    settings: dict[str, str], tmp_path: Path, plan: Callable[..., Plan]
) -> None:
    async with DockerEngine(tmp_path / "s", [10753]) as engine, house(engine, plan(engine, **settings)) as home:
        with capture_logs() as logs:
            await home.minutes(3)
        assert [line["error"] != "" for line in logs if line["event"] == "drain_failed"] == [True]
        assert engine.starts == 2
