"""The exit's procedure on a virtual clock, against a broker that misbehaves."""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from libs.trading.broker.address import BrokerAddress
from libs.trading.broker.client import Broker
from libs.trading.halt import EntryLock, HaltFile
from libs.trading.journal import Journal
from libs.trading.panic.exit import PanicExit
from libs.trading.panic.record import Request
from libs.trading.panic.report import JOURNAL_NAME, result_of, unfinished
from tests.fakes.broker import Answer, FakeBroker, Reset

EXIT = UUID(int=7)


class VirtualClock:
    """Time that passes only in sleeps."""

    def __init__(self) -> None:
        self.passed = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 5, 15, 0, tzinfo=UTC) + timedelta(seconds=self.passed)

    def monotonic(self) -> float:
        return self.passed

    async def sleep(self, seconds: float) -> None:
        self.passed += seconds
        await asyncio.sleep(0)


@dataclass
class House:
    """A state folder, a broker and a clock."""

    state: Path
    fake: FakeBroker = field(default_factory=FakeBroker)
    clock: VirtualClock = field(default_factory=VirtualClock)

    @property
    def journal(self) -> Journal:
        return Journal(self.state / JOURNAL_NAME)

    async def exit(self, exit_id: UUID = EXIT) -> dict[str, Any]:
        address = BrokerAddress("paper", "http://broker")
        async with Broker(address, transport=self.fake.transport()) as broker:
            panic_exit = PanicExit(
                Request(exit_id),
                broker=broker,
                clock=self.clock,
                journal=self.journal,
                halt_file=HaltFile(self.state),
                entry_lock=EntryLock(self.state),
            )
            return await panic_exit.run()

    def actions(self) -> list[str]:
        return [entry.action for entry in self.journal.entries()]


@pytest.fixture
def house(tmp_path: Path) -> House:
    house = House(tmp_path)
    house.fake.hold("AAPL", 10)
    house.fake.hold("MSFT", -5)
    house.fake.rest("AAPL", "sell", 4)
    house.fake.rest("NVDA", "buy", 2)
    return house


async def test_flat(house: House) -> None:
    answer = await house.exit()
    assert answer == {
        "ok": True,
        "exit_id": str(EXIT),
        "state": "FLAT",
        "positions_closed": 2,
        "orders_cancelled": 2,
        "failures": [],
        "ttl_minutes": 60,
        "halted_until": "2026-01-05T16:00:00+00:00",
    }
    assert HaltFile(house.state).reason() is not None
    assert house.journal.first_broken() is None
    assert house.actions()[0] == "begun"
    assert house.actions()[-1] == "ended"
    assert result_of(house.journal.entries(EXIT)) == answer


async def test_nothing_to_do_is_flat(tmp_path: Path) -> None:
    assert (await House(tmp_path).exit())["state"] == "FLAT"


async def test_flat_needs_two_reads_after_the_last_change(house: House) -> None:
    await house.exit()
    assert house.fake.calls[-4:] == ["GET /v2/orders", "GET /v2/positions"] * 2


async def test_the_halt_stands_before_the_first_call(house: House) -> None:
    seen: list[str | None] = []

    def look(method: str, path: str, number: int) -> Answer | None:
        seen.append(HaltFile(house.state).reason())
        return None

    house.fake.script = look
    await house.exit()
    assert all(reason is not None for reason in seen)


async def test_each_change_is_in_the_journal_before_it_is_sent(house: House) -> None:
    written: dict[str, list[str]] = {}

    def look(method: str, path: str, number: int) -> Answer | None:
        written.setdefault(f"{method} {path}", house.actions())
        return None

    house.fake.script = look
    await house.exit()
    assert written["DELETE /v2/orders"] == ["begun", "cancel_all"]
    assert written["DELETE /v2/positions"][-1] == "close_all"


async def test_an_order_that_the_list_refused_is_cancelled_alone(house: House) -> None:
    house.fake.refuse_cancel["o-1"] = 2
    answer = await house.exit()
    assert (answer["state"], answer["orders_cancelled"], answer["failures"]) == ("FLAT", 2, [])
    assert "DELETE /v2/orders/o-1" in house.fake.calls


async def test_a_position_that_the_list_refused_is_closed_alone(house: House) -> None:
    house.fake.refuse_close["MSFT"] = 1
    answer = await house.exit()
    assert (answer["state"], answer["positions_closed"], answer["failures"]) == ("FLAT", 2, [])
    assert "DELETE /v2/positions/MSFT" in house.fake.calls


async def test_every_close_refused_for_ever_is_not_flat(house: House) -> None:
    house.fake.refuse_close.update({"AAPL": 10**6, "MSFT": 10**6})
    answer = await house.exit()
    assert (answer["state"], answer["ok"], answer["positions_closed"]) == ("PARTIAL", False, 0)
    assert "AAPL: 10 still held" in answer["failures"]
    assert "MSFT: DELETE /v2/positions/MSFT: 500 internal server error occurred" in answer["failures"]


async def test_nothing_cancelled_and_nothing_closed_is_failed(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.fake.hold("AAPL", 10)
    house.fake.refuse_close["AAPL"] = 10**6
    assert (await house.exit())["state"] == "FAILED"
    assert house.clock.passed >= 120


async def test_a_cancel_that_stays_pending_is_named(house: House) -> None:
    house.fake.stuck_cancels.add("o-2")
    answer = await house.exit()
    assert (answer["state"], answer["positions_closed"], answer["orders_cancelled"]) == ("PARTIAL", 2, 1)
    assert answer["failures"] == ["order o-2 is still open: buy 2 NVDA (limit), pending_cancel"]


async def test_a_slow_cancel_that_holds_the_quantity(house: House) -> None:
    house.fake.stuck_cancels.add("o-1")

    def release(method: str, path: str, number: int) -> Answer | None:
        if path == "/v2/positions/AAPL" and number == 2:
            house.fake.orders["o-1"]["status"] = "canceled"
        return None

    house.fake.script = release
    answer = await house.exit()
    assert (answer["state"], answer["failures"]) == ("FLAT", [])
    assert house.fake.turned == []


async def test_positions_that_come_back_are_closed_again(house: House) -> None:
    house.fake.reappear["AAPL"] = Decimal(3)
    answer = await house.exit()
    assert (answer["state"], answer["positions_closed"]) == ("FLAT", 2)
    assert house.fake.calls.count("DELETE /v2/positions") == 2
    assert house.clock.passed < 5, "it does not wait for what no order closes"


async def test_a_closed_market(house: House) -> None:
    house.fake.market_open = False
    answer = await house.exit()
    assert (answer["state"], answer["ok"], answer["orders_cancelled"]) == ("PENDING_MARKET_OPEN", False, 2)
    closing = {(order["symbol"], order["side"], order["qty"]) for order in house.fake.open()}
    assert closing == {("AAPL", "sell", "10"), ("MSFT", "buy", "5")}


async def test_a_closed_market_with_a_foreign_order_left_is_partial(house: House) -> None:
    house.fake.market_open = False
    house.fake.stuck_cancels.add("o-2")
    assert (await house.exit())["state"] == "PARTIAL"


async def test_closing_orders_that_never_fill_are_partial(house: House) -> None:
    house.fake.fills = False
    answer = await house.exit()
    assert answer["state"] == "PARTIAL"
    assert house.fake.turned == []
    closing = [(order["symbol"], order["qty"]) for order in house.fake.open()]
    assert sorted(closing) == [("AAPL", "10"), ("MSFT", "5")], "each closing order once"


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", ["DELETE /v2/orders", "DELETE /v2/positions", "GET /v2/orders", "GET /v2/positions"])
async def test_resets(house: House, call: str, after: bool) -> None:
    def reset(method: str, path: str, number: int) -> Answer | None:
        if f"{method} {path}" == call and number <= 2:
            raise Reset(after=after)
        return None

    house.fake.script = reset
    answer = await house.exit()
    assert (answer["state"], answer["failures"], house.fake.turned) == ("FLAT", [], [])


async def test_closing_orders_whose_answer_was_lost_are_known_from_the_next_read(house: House) -> None:
    house.fake.fills = False

    def reset(method: str, path: str, number: int) -> Answer | None:
        if (method, path, number) == ("DELETE", "/v2/positions", 1):
            raise Reset(after=True)
        house.fake.fills = house.clock.passed > 2
        return None

    house.fake.script = reset
    answer = await house.exit()
    seen = [entry.result["orders"] for entry in house.journal.entries() if entry.action == "close_seen"]
    assert [(order["id"], order["symbol"], order["side"]) for order in seen[0]] == [
        ("o-3", "AAPL", "sell"),
        ("o-4", "MSFT", "buy"),
    ]
    assert (answer["state"], answer["orders_cancelled"]) == ("FLAT", 2)


async def test_a_read_that_fails_at_the_end_is_not_flat(house: House) -> None:
    def fail(method: str, path: str, number: int) -> Answer | None:
        return (500, {"message": "no"}) if method == "GET" and path == "/v2/orders" and number > 2 else None

    house.fake.script = fail
    answer = await house.exit()
    assert answer["state"] == "PARTIAL"
    assert any("could not be read" in failure for failure in answer["failures"])


async def test_a_broker_that_is_away_is_failed_and_the_halt_stands(house: House) -> None:
    def away(method: str, path: str, number: int) -> Answer | None:
        raise Reset

    house.fake.script = away
    answer = await house.exit()
    assert (answer["state"], answer["positions_closed"]) == ("FAILED", 0)
    assert HaltFile(house.state).reason() is not None
    assert 120 <= house.clock.passed < 140


async def test_an_entry_on_its_way_keeps_it_from_saying_flat(house: House) -> None:
    lock = EntryLock(house.state)
    with lock.sending(uuid4(), name="lexi-1"):
        answer = await house.exit()
    assert answer["state"] == "PARTIAL"
    assert any("could not be verified" in failure for failure in answer["failures"])
    assert any("still on its way" in failure for failure in answer["failures"])
    assert house.actions().count("entry_under_way") == 1
    assert house.fake.calls.count("DELETE /v2/positions") == 1, "it waits, and goes on with nothing"


async def test_an_entry_that_arrives_late_is_cancelled(house: House) -> None:
    held = EntryLock(house.state).sending(uuid4(), name="lexi-1")
    sending = held.__enter__()

    def arrive(method: str, path: str, number: int) -> Answer | None:
        if path == "/v2/positions" and method == "GET" and number == 4:
            house.fake.rest("TSLA", "buy", 1)
            sending.settled = True
            held.__exit__(None, None, None)
        return None

    house.fake.script = arrive
    answer = await house.exit()
    assert (answer["state"], answer["orders_cancelled"]) == ("FLAT", 3)


async def test_a_halt_that_cannot_be_written_is_never_flat(house: House) -> None:
    nobody_writes_there = House(Path("/proc/self"), fake=house.fake)
    answer = await nobody_writes_there.exit()
    assert (answer["state"], answer["positions_closed"]) == ("PARTIAL", 2)
    assert any("halt file could not be written" in failure for failure in answer["failures"])


async def test_a_halt_that_vanishes_is_put_back(house: House) -> None:
    def remove(method: str, path: str, number: int) -> Answer | None:
        if path == "/v2/positions" and method == "GET" and number == 2:
            HaltFile(house.state).remove(EXIT)
        return None

    house.fake.script = remove
    assert (await house.exit())["state"] == "FLAT"
    assert HaltFile(house.state).reason() is not None


async def test_a_folder_that_cannot_be_read_halts_by_itself(house: House) -> None:
    state = house.state / "away"
    state.symlink_to(house.state / "nowhere" / "deeper")
    answer = await House(state, fake=house.fake).exit()
    assert (answer["state"], answer["positions_closed"]) == ("FLAT", 2)
    assert any("halt file could not be written" in failure for failure in answer["failures"])


async def test_a_journal_that_cannot_be_written_stops_nothing(house: House) -> None:
    (house.state / JOURNAL_NAME).mkdir()
    answer = await house.exit()
    assert answer["state"] == "FLAT"
    assert any("journal could not be written" in failure for failure in answer["failures"])


class _Killed(BaseException):
    """Stops the exit where it is."""


@pytest.mark.parametrize("fills", [True, False])
async def test_killed_after_each_step_and_resumed(tmp_path: Path, fills: bool) -> None:
    steps = 0
    while True:
        state = tmp_path / f"{fills}{steps}"
        state.mkdir()
        house = House(state)
        house.fake.fills = fills
        house.fake.hold("AAPL", 10)
        house.fake.rest("NVDA", "buy", 2)
        if not await _killed_after(house, steps):
            break
        assert unfinished(house.journal) == (EXIT if steps else None)
        house.fake.fills = True
        answer = await house.exit()
        assert (answer["state"], answer["positions_closed"]) == ("FLAT", 1), steps
        assert house.fake.turned == []
        assert house.journal.first_broken() is None
        steps += 1
        if steps == 20:
            break
    assert steps > 8


async def _killed_after(house: House, steps: int) -> bool:
    """Whether it was killed before its end, just before it writes one more entry than `steps`."""
    written = 0
    append = Journal.append

    def count(self: Journal, subject: UUID, action: str, result: Any) -> Any:
        nonlocal written
        if written == steps:
            raise _Killed
        written += 1
        return append(self, subject, action, result)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", count)
        house.clock.passed = 0.0
        try:
            await house.exit()
        except _Killed:
            return True
        return False


async def test_an_exit_that_ended_answers_again_and_sends_nothing(house: House) -> None:
    first = await house.exit()
    calls = len(house.fake.calls)
    assert await house.exit() == first
    assert len(house.fake.calls) == calls


async def test_a_second_exit_counts_for_itself(house: House) -> None:
    await house.exit()
    second = await house.exit(uuid4())
    assert (second["state"], second["positions_closed"], second["orders_cancelled"]) == ("FLAT", 0, 0)
