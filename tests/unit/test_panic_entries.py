"""An exit, and entries whose process was killed while they were sent."""

import os
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from libs.trading.halt import EntryLock
from tests.fakes.broker import Answer, Reset
from tests.unit.test_panic_exit import House

BY_CLIENT_ID = "/v2/orders:by_client_order_id"
MISSING: Answer = (404, {"code": 40410000, "message": "order not found"})


class Killed(House):
    """A house whose api was killed while it sent one entry, so many seconds before the exit."""

    order_id: UUID
    arrives_at: float | None = None
    arrived: str | None = None

    def leave(self, *, age_s: float) -> None:
        self.order_id = uuid4()
        EntryLock(self.state).marks.put(self.order_id, f"lexi-{self.order_id.hex}")
        at = (self.clock.now() - timedelta(seconds=age_s)).timestamp()
        os.utime(self.state / "entries" / str(self.order_id), (at, at))
        self.fake.script = self.look

    def look(self, method: str, path: str, number: int) -> Answer | None:
        if self.arrived is None and self.arrives_at is not None and self.clock.passed >= self.arrives_at:
            self.arrived = self.fake.rest("TSLA", "buy", 1)
        if path != BY_CLIENT_ID:
            return None
        return MISSING if self.arrived is None else (200, self.fake.orders[self.arrived])

    @property
    def changes(self) -> int:
        return sum(call.startswith("DELETE") for call in self.fake.calls)


@pytest.fixture
def house(tmp_path: Path) -> Killed:
    return Killed(tmp_path)


async def test_it_is_waited_for_until_it_is_too_old_to_come(house: Killed) -> None:
    house.leave(age_s=5)
    answer = await house.exit()
    assert (answer["state"], answer["failures"]) == ("FLAT", [])
    assert 55 <= house.clock.passed < 62
    assert house.changes == 1, "one cancel, no position to close, and no further rounds on an empty picture"
    assert house.actions().count("entry_under_way") == 1
    said = next(entry for entry in house.journal.entries() if entry.action == "entry_under_way")
    assert said.result == {"orders": [f"lexi-{house.order_id.hex}"]}


async def test_one_that_arrives_is_cancelled(house: Killed) -> None:
    house.leave(age_s=5)
    house.arrives_at = 20.0
    answer = await house.exit()
    assert (answer["state"], answer["orders_cancelled"], answer["failures"]) == ("FLAT", 1, [])
    assert 20 <= house.clock.passed < 30


async def test_one_that_had_arrived_keeps_nobody_waiting(house: Killed) -> None:
    house.leave(age_s=5)
    house.arrives_at = 0.0
    answer = await house.exit()
    assert (answer["state"], answer["orders_cancelled"]) == ("FLAT", 1)
    assert house.clock.passed < 3


async def test_an_old_one_tells_nothing(house: Killed) -> None:
    house.leave(age_s=60)
    assert (await house.exit())["state"] == "FLAT"
    assert house.clock.passed < 3
    assert f"GET {BY_CLIENT_ID}" not in house.fake.calls


async def test_a_clock_that_was_set_back_holds_it_up_no_longer(house: Killed) -> None:
    house.leave(age_s=-86_400)
    assert (await house.exit())["state"] == "FLAT"
    assert 60 <= house.clock.passed < 65


async def test_one_whose_mark_is_taken_away_is_known(house: Killed) -> None:
    house.leave(age_s=5)

    def settle(method: str, path: str, number: int) -> Answer | None:
        if house.clock.passed > 10:
            EntryLock(house.state).marks.remove(house.order_id)
        return house.look(method, path, number)

    house.fake.script = settle
    assert (await house.exit())["state"] == "FLAT"
    assert 10 <= house.clock.passed < 15


async def test_a_look_that_fails_says_nothing(house: Killed) -> None:
    house.leave(age_s=5)

    def fail(method: str, path: str, number: int) -> Answer | None:
        if path == BY_CLIENT_ID:
            raise Reset
        return None

    house.fake.script = fail
    assert (await house.exit())["state"] == "FLAT"
    assert 55 <= house.clock.passed < 65


async def test_what_is_held_is_closed_meanwhile(house: Killed) -> None:
    house.fake.hold("AAPL", 10)
    house.leave(age_s=5)
    closed_at = list[float]()

    def watch(method: str, path: str, number: int) -> Answer | None:
        if not house.fake.positions:
            closed_at.append(house.clock.passed)
        return house.look(method, path, number)

    house.fake.script = watch
    assert (await house.exit())["positions_closed"] == 1
    assert closed_at[0] < 1


async def test_a_folder_of_marks_that_cannot_be_read(house: Killed) -> None:
    (house.state / "entries").symlink_to("entries")
    answer = await house.exit()
    assert answer["state"] == "FLAT"
    assert any("could not be read" in failure for failure in answer["failures"])
    assert house.clock.passed >= 60
