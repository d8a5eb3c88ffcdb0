"""Panic exit, halt and re-arm over HTTP: real processes against an account at the wire."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prometheus_client import REGISTRY
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.db.engine import DatabaseSettings, create_engine
from libs.settings import SettingsError
from libs.switches import turn
from libs.trading.broker.address import BrokerAddress
from libs.trading.broker.client import Broker
from libs.trading.halt import HaltFile, new_halt
from libs.trading.halts import Position, close, copy_local, record
from libs.trading.journal import Journal
from libs.trading.panic.opening import LOCK_NAME
from libs.trading.panic.report import JOURNAL_NAME
from services.api.strategist import panic
from services.api.strategist.stopping.cut_off import AT_WORK, cut_off, resume_first, superseded
from services.api.strategist.stopping.runner import PanicRouteSettings, PanicRunner, PanicState
from services.api.strategist.stopping.watch import Watch, open_panic
from tests.integration.broker_wire import ORDER, POSITION, BrokerWire, broker_wire
from tests.integration.strategist_app import Desk, desk_of

ROOT = Path(__file__).parents[2]
BODY = {"reason": "fire drill", "ttl_minutes": 30}
NOT_HERE = "postgresql://nobody@127.0.0.1:9/nothing"


class House:
    """The routes on a disk, an account and a database; `state` is the folder of halt and journal."""

    def __init__(self, engine: AsyncEngine, wire: BrokerWire, folder: Path) -> None:
        self.engine, self.wire, self.folder = engine, wire, folder
        self.state = folder / "state"
        self.state.mkdir()
        self.halt_file = HaltFile(self.state)
        self.broker = Broker(BrokerAddress(name="paper", base_url=wire.url))
        self.desk = self.open()

    def open(self, environment: dict[str, str] | None = None, *, enabled: bool = True, wait_s: float = 60) -> Desk:
        """The routes, with their own settings; `environment` is the processes'."""
        variables = dict(os.environ) | {"BROKER": "paper", "PAPER_URL": self.wire.url} | (environment or {})
        settings = PanicRouteSettings(enable_panic_exit=enabled, panic_wait_s=wait_s)
        runner = PanicRunner(self.state, settings, environment=variables)
        self.panic = PanicState(self.engine, self.broker, self.halt_file, runner)
        strategist = SimpleNamespace(panic=self.panic)
        folder = self.folder / str(uuid4())
        self.desk = desk_of([panic.router], self.engine, folder, strategist=strategist)
        return self.desk

    def hold(self, *, orders: int = 2, positions: int = 1) -> None:
        self.wire.orders = [{**ORDER, "id": f"o{number}"} for number in range(orders)]
        self.wire.positions = [{**POSITION, "symbol": f"S{number}"} for number in range(positions)]

    async def exit(self, body: Any = BODY) -> dict[str, Any]:
        answer = await self.desk.send("POST", "/panic-exit", scope="panic", body=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def record(self, exit_id: str) -> dict[str, Any]:
        answer = await self.desk.send("GET", f"/panic-exit/{exit_id}", scope="read")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def halt(self) -> dict[str, Any]:
        return (await self.desk.send("GET", "/halt", scope="read")).json()


@pytest.fixture
async def wire() -> AsyncGenerator[BrokerWire, None]:
    async with broker_wire() as made:
        yield made


@pytest.fixture
async def house(engine: AsyncEngine, wire: BrokerWire, tmp_path: Path) -> AsyncGenerator[House, None]:
    made = House(engine, wire, tmp_path)
    yield made
    await made.broker.aclose()


async def until(read: Callable[[], Awaitable[bool]]) -> None:
    """Until it holds; the test's own timeout ends a wait for ever."""
    while not await read():  # noqa: ASYNC110 - what is read has no event for it
        await asyncio.sleep(0.05)


async def test_it_is_closed_unless_it_is_enabled(house: House) -> None:
    house.hold()
    house.open(enabled=False)
    for body in (None, BODY, BODY | {"dry_run": True}, {"ttl_minutes": -1}, "nonsense"):
        answer = await house.desk.send("POST", "/panic-exit", scope="panic", body=body)
        assert (answer.status_code, answer.json()["detail"]) == (403, "panic exit disabled")
    assert house.wire.calls == []
    assert house.halt_file.reason() is None
    (house.state / "panic.enabled").touch()
    assert (await house.exit())["state"] == "FLAT"


async def test_a_folder_that_cannot_be_read_opens_no_route(house: House) -> None:
    house.state = house.folder / ("x" * 300)  # longer than any name may be
    house.open(enabled=False)
    answer = await house.desk.send("POST", "/panic-exit", scope="panic", body=BODY)
    assert (answer.status_code, answer.json()["detail"]) == (403, "panic exit disabled")


async def test_it_leaves_the_account_flat_and_entries_halted(house: House) -> None:
    house.hold(orders=3, positions=2)
    answer = await house.exit()
    until = datetime.fromisoformat(answer.pop("halted_until"))
    exit_id = answer.pop("exit_id")
    assert answer == {
        "ok": True,
        "state": "FLAT",
        "positions_closed": 2,
        "orders_cancelled": 3,
        "failures": [],
        "ttl_minutes": 30,
    }
    assert (house.wire.orders, house.wire.positions) == ([], [])
    halt = await house.halt()
    assert (halt["halted"], halt["reason"], datetime.fromisoformat(halt["halted_until"])) == (True, "fire drill", until)
    assert [(one["id"], one["recorded"], one["here"]) for one in halt["halts"]] == [(exit_id, False, True)]


async def test_a_body_may_be_left_out(house: House) -> None:
    answer = await house.exit(None)
    assert (answer["state"], answer["ttl_minutes"]) == ("FLAT", 60)


async def test_its_record_has_every_step(house: House) -> None:
    house.hold()
    answer = await house.exit()
    kept = await house.record(answer["exit_id"])
    steps = kept.pop("steps")
    assert kept == answer
    actions = [step["action"] for step in steps]
    assert actions[0] == "begun"
    assert "ended" in actions
    assert actions.index("cancel_all") < actions.index("close_all")
    assert all(datetime.fromisoformat(step["at"]).tzinfo is not None for step in steps)


async def test_a_dry_run_lists_what_would_be_done_and_only_reads(house: House) -> None:
    house.hold(orders=1, positions=1)
    answer = await house.exit(BODY | {"dry_run": True})
    assert answer["state"] == "DRY_RUN"
    (order,), (position,) = answer["would_cancel"], answer["would_close"]
    assert (order["id"], order["symbol"], order["qty"], order["limit_price"]) == ("o0", "AAPL", 5, 9.5)
    assert position == {"symbol": "S0", "side": "sell", "qty": 3, "current_price": 11}
    assert {call.split()[0] for call in house.wire.calls} == {"GET"}
    assert house.halt_file.reason() is None
    assert not (house.state / JOURNAL_NAME).exists()


async def test_dry_runs_at_once_share_one_process_and_delay_no_exit(house: House) -> None:
    house.hold()
    house.wire.slow = asyncio.Event()
    bodies = [{"dry_run": True, "ttl_minutes": minutes} for minutes in range(20)]
    asking = [asyncio.create_task(house.exit(body)) for body in bodies]

    async def reading() -> bool:
        return bool(house.wire.calls)

    await until(reading)
    assert house.panic.runner.processes == []
    assert cut_off(house.state, house.panic.runner.environment) is None
    begin_of_an_exit(house)
    await Watch(house.panic).resume()  # a dry run is no reason to leave an exit unfinished
    assert len(house.panic.runner.processes) == 1
    house.wire.slow.set()
    answers = await asyncio.gather(*asking)
    assert [answer["ttl_minutes"] for answer in answers] == list(range(20))
    assert {(answer["exit_id"], answer["state"]) for answer in answers} == {(answers[0]["exit_id"], "DRY_RUN")}
    assert house.wire.calls.count("GET /v2/account") == 0
    await over(house)
    assert (await house.exit({"dry_run": True}))["exit_id"] != answers[0]["exit_id"]


def begin_of_an_exit(house: House) -> UUID:
    """As an exit leaves the disk whose process was killed after its first steps."""
    exit_id = uuid4()
    halt = new_halt(exit_id, "cut off", at=datetime.now(UTC) - timedelta(hours=3), ttl_minutes=60)
    house.halt_file.write(halt)
    said = {"reason": "cut off", "ttl_minutes": 60, "halted_until": halt.halted_until.isoformat(), "dry_run": False}
    journal = Journal(house.state / JOURNAL_NAME, now=lambda: halt.at)
    journal.append(exit_id, "begun", said)
    journal.append(exit_id, "cancel_all_result", {"cancelled": ["o1", "o2"], "failed": []})
    return exit_id


async def over(house: House) -> None:
    """Until no process of an exit is left."""

    async def none_left() -> bool:
        return not house.panic.runner.processes and all(child.over for child in AT_WORK)

    await until(none_left)


async def test_an_exit_that_was_cut_off_goes_on_before_the_database_is_opened(house: House) -> None:
    house.hold()
    exit_id = begin_of_an_exit(house)
    variables = {"BROKER": "paper", "PAPER_URL": house.wire.url, "DATABASE_URL": NOT_HERE}
    variables |= {"LOCAL_STATE": str(house.state), "LLM_BASE_URL": "http://127.0.0.1:9/v1", "LLM_MODEL": "none"}
    api = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.api", cwd=ROOT, env=dict(os.environ) | variables, stderr=asyncio.subprocess.PIPE
    )
    _, said = await api.communicate()
    assert api.returncode == 2
    assert b"cannot use the database" in said

    async def flat() -> bool:
        return (await house.record(str(exit_id)))["state"] == "FLAT"

    await until(flat)
    assert (house.wire.orders, house.wire.positions) == ([], [])


async def test_what_was_cut_off_before_its_first_entry_is_not_gone_on_with_either(house: House) -> None:
    exit_id = await halted(house, minutes=30)
    (house.state / LOCK_NAME).write_text(str(exit_id), encoding="ascii")
    assert cut_off(house.state, house.panic.runner.environment) == exit_id
    assert not await superseded(house.engine, house.state, exit_id)
    async with house.engine.begin() as connection:
        await close(connection, [exit_id], operator="ann", reason="checked")
    assert await superseded(house.engine, house.state, exit_id)
    assert cut_off(house.state, house.panic.runner.environment) is None
    kept = await house.record(str(exit_id))
    assert (kept["state"], kept["orders_cancelled"], kept["halted_until"]) == ("FAILED", 0, None)


async def test_what_was_cut_off_before_a_re_arm_elsewhere_is_not_gone_on_with(
    house: House, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    house.hold()
    exit_id = begin_of_an_exit(house)
    await copy_local(house.engine, house.state, Position())
    async with house.engine.begin() as connection:
        await close(connection, [exit_id], operator="ann", reason="the host is dead, the account was checked")
    assert await resume_first(house.state) is None
    assert house.wire.calls == []
    kept = await house.record(str(exit_id))
    assert (kept["ok"], kept["state"], kept["orders_cancelled"]) == (False, "FAILED", 2)
    assert "not gone on with: ann re-armed at 20" in kept["failures"][0]
    await Watch(house.panic).resume()
    assert house.panic.runner.processes == []
    for position in (Position(), Position()):
        await copy_local(house.engine, house.state, position)
    assert house.halt_file.reason() is None
    async with house.engine.connect() as connection:
        told = await connection.execute(text("select text from alerts where kind = 'panic_exit'"))
        assert [words.split(" re-armed")[0] for words in told.scalars()] == [
            f"Panic exit {exit_id} FAILED: cut off and not gone on with: ann"
        ]


@pytest.mark.parametrize("away", [True, False])
async def test_what_nobody_re_armed_from_is_gone_on_with(
    house: House, database_url: str, monkeypatch: pytest.MonkeyPatch, *, away: bool
) -> None:
    monkeypatch.setenv("DATABASE_URL", NOT_HERE if away else database_url)
    house.hold()
    exit_id = begin_of_an_exit(house)
    await copy_local(house.engine, house.state, Position())
    variables = dict(os.environ) | {"BROKER": "paper", "PAPER_URL": house.wire.url}
    child = await resume_first(house.state, variables)
    assert child is not None
    assert os.getsid(child.pid) == child.pid
    await over(house)
    assert (await house.record(str(exit_id)))["state"] == "FLAT"


async def test_the_watch_asks_before_it_goes_on(house: House) -> None:
    house.hold()
    exit_id = begin_of_an_exit(house)
    await copy_local(house.engine, house.state, Position())
    async with house.engine.begin() as connection:
        await close(connection, [exit_id], operator="ann", reason="checked")
    await Watch(house.panic).resume()
    assert house.panic.runner.processes == []
    assert (await house.record(str(exit_id)))["state"] == "FAILED"


async def test_it_works_with_postgres_away(house: House) -> None:
    house.hold()
    house.engine = create_engine(DatabaseSettings(database_url=SecretStr(NOT_HERE)), application="test")
    house.open()
    halt = await house.halt()
    assert (halt["halted"], halt["reason"], halt["halts"]) == (True, "the database does not answer", [])
    answer = await house.exit()
    assert answer["state"] == "FLAT"
    assert (await house.record(answer["exit_id"]))["state"] == "FLAT"
    assert (await house.halt())["reason"] == "fire drill"
    missing = await house.desk.send("GET", f"/panic-exit/{uuid4()}", scope="read")
    assert missing.status_code == 503
    refused = await house.desk.send("POST", "/rearm", scope="rearm", body=REARM)
    assert refused.status_code == 503
    assert house.halt_file.reason() is not None
    await house.engine.dispose()


async def test_after_its_time_the_route_answers_running_and_the_exit_goes_on(house: House) -> None:
    house.hold(orders=0)
    house.wire.stuck = True
    house.open(wait_s=2)
    first = await house.exit()
    assert (first["ok"], first["state"], first["ttl_minutes"]) == (False, "RUNNING", 30)
    second = await house.exit()
    assert (second["exit_id"], second["state"]) == (first["exit_id"], "RUNNING")
    house.wire.stuck = False

    async def over() -> bool:
        return (await house.record(first["exit_id"]))["state"] == "FLAT"

    await until(over)
    assert house.wire.positions == []


async def test_a_flood_of_requests_is_answered_by_one_exit_and_two_processes(house: House) -> None:
    house.hold(orders=0)
    house.wire.stuck = True
    asking = [asyncio.create_task(house.exit())]
    await begun(house)
    asking += [asyncio.create_task(house.exit()) for _ in range(20)]
    await asyncio.sleep(0.2)
    assert len(house.panic.runner.processes) == 2
    house.wire.stuck = False
    answers = await asyncio.gather(*asking)
    assert {(answer["exit_id"], answer["state"]) for answer in answers} == {(answers[0]["exit_id"], "FLAT")}


async def test_an_exit_that_is_over_answers_no_later_request(house: House) -> None:
    first = await house.exit()
    house.hold()
    second = await house.exit()
    assert (second["state"], second["positions_closed"]) == ("FLAT", 1)
    assert second["exit_id"] != first["exit_id"]


async def begun(house: House) -> int:
    """Until an exit is at work on the account; the id of its process."""

    async def closing() -> bool:
        return "DELETE /v2/positions" in house.wire.calls

    await until(closing)
    (pid,) = house.panic.runner.processes
    return pid


async def test_it_is_no_part_of_the_api_and_is_resumed_when_it_is_killed(house: House) -> None:
    house.hold(orders=0)
    house.wire.stuck = True
    asking = asyncio.create_task(house.exit())
    pid = await begun(house)
    assert os.getsid(pid) == pid
    os.kill(pid, signal.SIGKILL)
    house.wire.stuck = False
    watching = asyncio.create_task(Watch(house.panic, every_s=0.05).run())
    answer = await asking
    assert answer["state"] == "FLAT"
    actions = [step["action"] for step in (await house.record(answer["exit_id"]))["steps"]]
    assert "resumed" in actions
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching


async def test_a_request_whose_process_is_killed_is_answered_by_the_exit_under_way(house: House) -> None:
    house.hold(orders=0)
    house.wire.stuck = True
    first = asyncio.create_task(house.exit())
    pid = await begun(house)
    house.panic.runner._wait_s = 2
    second = asyncio.create_task(house.exit())

    async def both() -> bool:
        return len(house.panic.runner.processes) == 2

    await until(both)
    (joining,) = set(house.panic.runner.processes) - {pid}
    os.kill(joining, signal.SIGKILL)
    answer = await second
    assert answer["state"] == "RUNNING"
    house.wire.stuck = False
    assert answer["exit_id"] == (await first)["exit_id"]


async def test_an_exit_that_another_process_is_at_work_on_is_left_to_it(house: House) -> None:
    house.hold(orders=0)
    house.wire.stuck = True
    asking = asyncio.create_task(house.exit())
    await begun(house)
    assert cut_off(house.state, house.panic.runner.environment) is None
    await Watch(house.panic).resume()
    assert await resume_first(house.state) is None
    assert len(house.panic.runner.processes) == 1
    house.wire.stuck = False
    await asking


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"BROKER": "alpaca", "ALPACA_KEY_ID": ""}, "ALPACA_KEY_ID"),
        ({"PYTHONHOME": "/nowhere"}, "python"),
    ],
)
async def test_an_exit_that_cannot_begin_has_failed(house: House, environment: dict[str, str], said: str) -> None:
    house.open(environment)
    answer = await house.exit()
    assert (answer["ok"], answer["state"]) == (False, "FAILED")
    assert said in answer["failures"][0]


async def test_a_dry_run_that_cannot_answer_is_an_error(house: House) -> None:
    house.open({"PYTHONHOME": "/nowhere"})
    answer = await house.desk.send("POST", "/panic-exit", scope="panic", body={"dry_run": True})
    assert answer.status_code == 502
    assert "python" in answer.json()["detail"]


async def test_a_record_of_another_disk_comes_from_postgres(house: House, tmp_path: Path) -> None:
    elsewhere, asked, ran = tmp_path / "elsewhere", uuid4(), uuid4()
    journal = Journal(elsewhere / JOURNAL_NAME)
    journal.append(asked, "joined", {"exit_id": str(ran)})
    said = {"reason": "panic_exit", "ttl_minutes": 60, "halted_until": "2026-01-05T16:00:00+00:00", "dry_run": False}
    journal.append(ran, "begun", said)
    both = uuid4()  # a request that joined an exit, and then had to go on alone
    journal.append(both, "joined", {"exit_id": str(ran)})
    journal.append(both, "begun", said)
    await copy_local(house.engine, elsewhere, Position())
    for exit_id, answers, steps in ((asked, ran, 1), (ran, ran, 1), (both, both, 2)):
        kept = await house.record(str(exit_id))
        assert (kept["exit_id"], kept["state"], len(kept["steps"])) == (str(answers), "RUNNING", steps)
    missing = await house.desk.send("GET", f"/panic-exit/{uuid4()}", scope="read")
    assert missing.status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {"ttl_minutes": -1},
        {"ttl_minutes": 1.5},
        {"ttl_minutes": True},
        {"ttl_minutes": "60"},
        {"reason": ""},
        {"reason": "NUL \x00"},
        {"reason": "two\nlines"},
        {"dry_run": "no"},
        {"ttl": 5},
    ],
)
async def test_what_makes_no_sense_is_refused_before_anything_is_done(house: House, body: dict[str, Any]) -> None:
    answer = await house.desk.send("POST", "/panic-exit", scope="panic", body=body)
    assert answer.status_code == 422
    assert house.wire.calls == []
    assert house.halt_file.reason() is None


async def test_a_reason_that_looks_like_an_option_is_a_reason(house: House) -> None:
    assert (await house.exit({"reason": "--dry-run"}))["state"] == "FLAT"
    assert (await house.halt())["reason"] == "--dry-run"


REARM = {"operator": "ann", "reason": "all is well", "confirm": "REARM"}


async def halted(house: House, *, minutes: int) -> UUID:
    halt = new_halt(uuid4(), "panic_exit", at=datetime.now(UTC) - timedelta(minutes=60), ttl_minutes=minutes)
    house.halt_file.write(halt)
    async with house.engine.begin() as connection:
        await record(connection, halt)
    return halt.id


async def test_a_person_re_arms(house: House) -> None:
    halt_id = await halted(house, minutes=30)
    answer = await house.desk.send("POST", "/rearm", scope="rearm", body=REARM)
    assert answer.status_code == 200
    done = answer.json()
    assert datetime.fromisoformat(done.pop("at")).tzinfo is not None
    assert done == {
        "ok": True,
        "halt_ids": [str(halt_id)],
        "account": "paper:PA1",
        "operator": "ann (key has-rearm)",
        "reason": "all is well",
    }
    halt = await house.halt()
    assert halt == halt | {"halted": False, "reason": None, "halted_until": None, "halts": []}


async def test_a_re_arm_is_refused_with_the_reason(house: House) -> None:
    async def refusal(status: int) -> str:
        answer = await house.desk.send("POST", "/rearm", scope="rearm", body=REARM)
        assert answer.status_code == status
        return answer.json()["detail"]

    assert "nothing to re-arm" in await refusal(409)
    await halted(house, minutes=30)
    house.hold()
    assert "not flat" in await refusal(409)
    house.wire.orders, house.wire.positions = [{"id": "unreadable"}], []
    assert "nobody knows whether it is flat" in await refusal(503)
    async with house.engine.begin() as connection:
        later = new_halt(uuid4(), "again", at=datetime.now(UTC), ttl_minutes=5)
        await record(connection, later)
    assert "stay halted until" in await refusal(409)
    assert house.halt_file.reason() is not None


@pytest.mark.parametrize(
    "body", [REARM | {"confirm": "rearm"}, REARM | {"operator": ""}, REARM | {"reason": " "}, {"confirm": "REARM"}]
)
async def test_a_re_arm_without_word_name_and_reason_is_refused(house: House, body: dict[str, Any]) -> None:
    await halted(house, minutes=30)
    assert (await house.desk.send("POST", "/rearm", scope="rearm", body=body)).status_code == 422
    assert house.halt_file.reason() is not None


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "/panic-exit", "panic"),
        ("POST", "/rearm", "rearm"),
        ("GET", "/halt", "read"),
        ("GET", "/panic-exit/00000000-0000-4000-8000-000000000000", "read"),
    ],
)
async def test_each_route_asks_for_its_scope(house: House, method: str, path: str, scope: str) -> None:
    house.open(enabled=False)
    for other in house.desk.keys:
        if other != scope:
            assert (await house.desk.send(method, path, scope=other, body={"x": "y"})).status_code == 403
    assert (await house.desk.send(method, path, scope=None)).status_code == 401
    assert house.wire.calls == []


def gauge(name: str) -> float | None:
    return REGISTRY.get_sample_value(name)


async def test_the_gauges_say_where_it_stands(house: House) -> None:
    watch = Watch(house.panic)
    await watch.measure()
    assert [gauge(name) for name in ("lexi_halted", "lexi_gate_disabled", "lexi_shadow_mode")] == [0, 0, 1]
    async with house.engine.begin() as connection:
        await turn(connection, "ORDER_GATE_DISABLED", True, operator="ann", reason="test")
    await halted(house, minutes=5)
    await watch.measure()
    assert [gauge(name) for name in ("lexi_halted", "lexi_gate_disabled")] == [1, 1]


async def test_without_postgres_the_gauge_says_halted(house: House) -> None:
    away = create_engine(DatabaseSettings(database_url=SecretStr(NOT_HERE)), application="test")
    watch = Watch(PanicState(away, house.broker, house.halt_file, house.panic.runner))
    with pytest.raises(OSError, match="refused"):
        await watch.measure()
    assert gauge("lexi_halted") == 1
    await away.dispose()


async def test_the_watch_copies_what_the_disk_says(house: House) -> None:
    house.hold()
    answer = await house.exit()
    await Watch(house.panic).copy()
    halt = await house.halt()
    assert [(one["id"], one["recorded"], one["here"]) for one in halt["halts"]] == [(answer["exit_id"], True, True)]
    async with house.engine.connect() as connection:
        assert await connection.scalar(text("select count(*) from panic_journal where action = 'ended'")) == 1


async def test_the_watch_begins_and_ends_with_the_process(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENABLE_PANIC_EXIT", "1")
    halt = new_halt(uuid4(), "panic_exit", at=datetime.now(UTC), ttl_minutes=5)
    house.halt_file.write(halt)
    before = asyncio.all_tasks()
    async with open_panic(house.engine, house.broker, state=house.state) as opened:
        assert opened.runner.enabled

        async def recorded() -> bool:
            return [one["recorded"] for one in (await house.halt())["halts"]] == [True]

        await until(recorded)
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize(("name", "value"), [("ENABLE_PANIC_EXIT", "maybe"), ("PANIC_WAIT_S", "0")])
async def test_a_setting_that_cannot_be_read_stops_the_start(
    house: House, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    opening = open_panic(house.engine, house.broker, state=house.state)
    with pytest.raises(SettingsError, match=name):
        await opening.__aenter__()
