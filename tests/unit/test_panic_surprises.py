"""Exits whose broker answers what nobody expected, or whose own code fails."""

from typing import Any

import pytest

from libs.trading.panic.exit import PanicExit
from libs.trading.panic.picture import is_pair
from libs.trading.panic.report import Tally
from libs.trading.panic.steps import Steps
from tests.fakes.broker import Answer
from tests.unit.test_panic_exit import House, house

__all__ = ["house"]


class _Odd(Exception):
    """What nobody expected."""


@pytest.mark.parametrize("step", ["cancel_all", "until_no_order"])
async def test_a_surprise_while_cancelling_keeps_nothing_open(
    house: House, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async def odd(*_: object, **__: object) -> None:
        raise _Odd("odd")

    monkeypatch.setattr(Steps, step, odd)
    house.fake.orders.clear()
    answer = await house.exit()
    assert (answer["state"], answer["positions_closed"]) == ("FLAT", 2)


async def test_a_surprise_in_every_look_still_answers(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def odd(*_: object) -> None:
        raise _Odd("odd")

    monkeypatch.setattr(Steps, "look", odd)
    answer = await house.exit()
    assert (answer["state"], house.actions()[-1]) == ("PARTIAL", "ended")
    assert "looking: _Odd: odd" in answer["failures"]
    assert house.fake.positions == {}


async def test_a_surprise_beyond_the_rounds_still_answers(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def odd(*_: object) -> None:
        raise _Odd("odd")

    monkeypatch.setattr(PanicExit, "_rounds", odd)
    answer = await house.exit()
    assert (answer["state"], house.actions()[-1]) == ("FAILED", "ended")
    assert "the rounds: _Odd: odd" in answer["failures"]


async def test_an_order_id_that_no_url_can_hold_keeps_nothing_open(house: House) -> None:
    odd = {**house.fake.orders["o-2"], "id": "o\ud800"}

    def answer_oddly(method: str, path: str, number: int) -> Answer | None:
        return (200, [odd]) if (method, path) == ("GET", "/v2/orders") and house.clock.passed < 3 else None

    house.fake.script = answer_oddly
    answer = await house.exit()
    assert (answer["state"], answer["positions_closed"]) == ("FLAT", 2)


async def test_the_last_two_reads_are_a_second_apart(house: House) -> None:
    reads = list[float]()

    def note(method: str, path: str, number: int) -> Answer | None:
        if (method, path) == ("GET", "/v2/orders"):
            reads.append(house.clock.passed)
        return None

    house.fake.script = note
    assert (await house.exit())["state"] == "FLAT"
    assert reads[-1] - reads[-2] >= 1


async def test_a_position_that_shows_late_is_seen(house: House) -> None:
    """Half a second after everything was gone."""
    gone: list[float] = []

    def late(method: str, path: str, number: int) -> Answer | None:
        if not house.fake.positions and not gone:
            gone.append(house.clock.passed)
        if gone and house.clock.passed >= gone[0] + 0.5 and "TSLA" not in seen:
            seen.append("TSLA")
            house.fake.hold("TSLA", 1)
        return None

    seen: list[str] = []
    house.fake.script = late
    answer = await house.exit()
    assert (answer["state"], answer["positions_closed"]) == ("FLAT", 3)


def test_one_position_under_two_names_counts_once() -> None:
    counted = Tally()
    order: dict[str, Any] = {"id": "o1", "symbol": "BTC/USD", "side": "sell", "qty": "2"}
    counted.take("read", {"open_orders": [], "positions": {"BTCUSD": "2"}})
    counted.take("close_all_result", {"orders": [order], "failed": []})
    counted.take("read", {"open_orders": ["o1"], "positions": {"BTCUSD": "2"}})
    assert counted.positions_closed == 0
    counted.take("read", {"open_orders": [], "positions": {}})
    assert counted.positions_closed == 1


async def test_a_pair_that_closes_slowly_does_not_wait_for_a_market(house: House) -> None:
    """The clock is that of shares; pairs trade around it."""
    house.fake.positions.clear()
    house.fake.orders.clear()
    house.fake.hold("BTC/USD", 2)
    house.fake.fills = False

    def fill_later(method: str, path: str, number: int) -> Answer | None:
        house.fake.fills = house.clock.passed >= 5
        if (method, path) == ("GET", "/v2/clock"):
            moment = "2026-01-05T15:00:00Z"
            return 200, {"timestamp": moment, "is_open": False, "next_open": moment, "next_close": moment}
        return None

    house.fake.script = fill_later
    answer = await house.exit()
    assert (answer["state"], answer["positions_closed"]) == ("FLAT", 1)


@pytest.mark.parametrize(
    ("symbol", "pair"), [("BTC/USD", True), ("BTCUSD", True), ("AAPL", False), ("GOOGL", False), ("BRK.B", False)]
)
def test_pairs(symbol: str, pair: bool) -> None:
    assert is_pair(symbol) is pair
