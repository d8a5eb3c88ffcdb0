"""Exits under random faults and kills: FLAT is only said of a flat account, and no position is ever turned around."""

import random
import shutil
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from libs.trading.halt import HaltFile
from libs.trading.panic.report import unfinished
from tests.fakes.broker import Answer, FakeBroker, Reset
from tests.unit.test_panic_exit import House

SYMBOLS = ("AAPL", "MSFT", "NVDA")
IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a name of its own is made in it


class _Killed(BaseException):
    """Stops the exit where it is."""


class Chaos:
    """Decides by a seed what each call meets: mostly nothing, for so many calls; afterwards the broker behaves."""

    def __init__(self, seed: int, fake: FakeBroker) -> None:
        self.random = random.Random(seed)
        self.fake = fake
        self.trouble = self.random.choice([0.0, 0.1, 0.3, 0.6])
        self.kills = self.random.choice([0.0, 0.05])
        self.left = self.random.randint(0, 150)
        for symbol in SYMBOLS:
            if self.random.random() < 0.7:
                fake.hold(symbol, self.random.choice([-7, -1, 1, 10]))
            for _ in range(self.random.randint(0, 3)):
                fake.rest(symbol, self.random.choice(["buy", "sell"]), self.random.randint(1, 3))
        for order in fake.open():
            if self.random.random() < 0.2:
                fake.stuck_cancels.add(order["id"])
            fake.refuse_cancel[order["id"]] = self.random.choice([0, 0, 0, 1, 4])
        for symbol in SYMBOLS:
            fake.refuse_close[symbol] = self.random.choice([0, 0, 1, 4])
            if self.random.random() < 0.2:
                fake.reappear[symbol] = Decimal(self.random.choice([-2, 3]))

    def __call__(self, method: str, path: str, number: int) -> Answer | None:
        self.left -= 1
        if self.left < 0:
            self._calm()
            return None
        self.fake.fills = self.random.random() < 0.7
        if self.random.random() < self.kills:
            raise _Killed
        if self.random.random() >= self.trouble:
            return None
        return self._mishap()

    def _mishap(self) -> Answer | None:
        kind = self.random.randrange(5)
        if kind < 2:
            raise Reset(after=kind == 1)
        answers: list[Answer | None] = [(500, {"message": "no"}), (429, {"message": "slow down"}), (200, {"odd": 1})]
        return answers[kind - 2]

    def _calm(self) -> None:
        self.fake.fills = True
        for order_id in self.fake.stuck_cancels:
            if self.fake.orders[order_id]["status"] == "pending_cancel":
                self.fake.orders[order_id]["status"] = "canceled"
        self.fake.stuck_cancels.clear()


async def _exit_through_kills(house: House) -> dict[str, Any]:
    while True:
        try:
            return await house.exit()
        except _Killed:
            house.clock.passed += 1
        except BaseExceptionGroup as group:
            if group.subgroup(_Killed) is None:
                raise


@given(seed=st.integers(min_value=0, max_value=10**9))
@settings(deadline=None)
async def test_whatever_happens(seed: int) -> None:
    state = Path(tempfile.mkdtemp(dir=IN_MEMORY))
    try:
        house = House(state)
        house.fake.script = Chaos(seed, house.fake)
        answer = await _exit_through_kills(house)
        fake = house.fake
        flat = not fake.positions and not fake.open()
        assert answer["state"] in {"FLAT", "PARTIAL", "FAILED"}
        assert answer["ok"] == (answer["state"] == "FLAT")
        assert flat or answer["state"] != "FLAT"
        assert flat or answer["failures"]
        assert not fake.turned
        assert HaltFile(state).reason() is not None
        assert house.journal.first_broken() is None
        assert unfinished(house.journal) is None
    finally:
        shutil.rmtree(state)
