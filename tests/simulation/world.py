"""A house, a broker and a market on one clock."""

import fcntl
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import text

from libs.switches import turn
from libs.trading.halt import HaltFile
from libs.trading.panic.opening import LOCK_NAME
from libs.trading.panic.report import unfinished
from services.paper.app import create_app
from services.paper.exchange import Manners, new_exchange
from services.paper.memory import PaperTransport
from services.paper.types import NewOrder, Refusal
from tests.simulation.clock import VirtualClock
from tests.simulation.house import Death, House
from tests.simulation.invariants import Watch
from tests.simulation.market import Market, Opinion
from tests.simulation.wire import Wires

ACCOUNT = "0b1c7a86-58ab-4d4e-9d0a-111111111111"
SPACE = UUID("5151d6a3-3f0e-4c8b-9d5e-5d2ae1d3a000")

HALTED = text("select exists (select 1 from halts where rearmed_at is null)")
FIRST = text("select qty from gate_verdicts where client_order_id = :id and first and not reduce_only")
"""The quantity an entry's id came with first."""


@dataclass(slots=True)
class World:
    """Everything, and what may be asked about it."""

    house: House
    exchange: Any
    market: Market
    clock: VirtualClock
    watch: Watch
    desk: Any
    random: Random
    trail: list[str] = field(default_factory=list[str])
    exits: int = 0
    strangers: int = 0

    @property
    def calm(self) -> bool:
        """Whether nothing is in the way of a panic exit."""
        planned = [mishap for who, mishap in self.house.wires.mishaps if who == "panic"]
        held = any(order.status == "pending_cancel" for order in self.exchange.book.open_orders())
        return not self.exchange.faults.entries() and not planned and not held

    async def halted(self) -> bool:
        """Whether entries are halted, here or in Postgres."""
        if self.house.halt_file.reason() is not None:
            return True
        async with self.house.engine.connect() as connection:
            return bool(await connection.scalar(HALTED))

    async def has_verdict(self, client_order_id: str, *, qty: str) -> bool:
        """Whether the first verdict of an order id was on this quantity."""
        async with self.house.engine.connect() as connection:
            return await connection.scalar(FIRST, {"id": client_order_id}) == Decimal(qty)

    async def tick(self, *opinions: Opinion) -> None:
        """The market moves, and the broker's marks with it."""
        await self.market.tick(self.clock.monotonic(), opinions=opinions)
        for ticker, price in self.market.prices.items():
            self.exchange.ledger.set_mark(ticker, Decimal(str(price)))
        await self.settle()

    async def settle(self) -> None:
        """Let the broker and Postgres know what time it is."""
        self.desk.settle()
        await self.clock.tell(self.house.engine)

    def stranger(self) -> None:
        """Somebody else's order: half of them fill at once, half of them rest where the market never comes."""
        self.strangers += 1
        ticker = self.random.choice(list(self.market.prices))
        side, rests = self.random.choice(["buy", "sell"]), self.random.random() < 0.5
        far = Decimal(1) if side == "buy" else Decimal(10_000)
        order = NewOrder(
            ticker,
            "buy" if side == "buy" else "sell",
            Decimal(self.random.randint(1, 40)),
            type="limit" if rests else "market",
            limit_price=far if rests else None,
            time_in_force="gtc",
            client_order_id=f"stranger-{self.strangers}",
        )
        self.watch.strangers.add(order.client_order_id)
        with suppress(Refusal):
            self.exchange.submit(order)

    async def panic(self, death: Death | None) -> dict[str, Any] | None:
        """A panic exit as its process begins: alone, and with the one that was cut off where there is one."""
        with (self.house.state / LOCK_NAME).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.exits += 1
            exit_id = unfinished(self.house.journal()) or uuid5(SPACE, str(self.exits))
            return await self.house.panic(exit_id, death=death)


async def open_world(url: str, state: Path, random: Random) -> World:
    """A world on its first morning: reconciled, with a first tick, in shadow."""
    clock = VirtualClock()
    exchange = new_exchange(
        ACCOUNT,
        Decimal(1_000_000),
        now=clock.now(),
        manners=Manners(fill_ms=random.choice([0, 50, 400]), slices=random.choice([1, 3])),
    )
    app = create_app(exchange, clock=clock.now, sleep=clock.sleep)
    halt_file = HaltFile(state)
    wires = Wires(halted=lambda: halt_file.reason() is not None)
    house = House(url, state=state, wires=wires, paper=PaperTransport(app), clock=clock)
    await clock.prepare(house.engine)
    market = Market(house.engine, random)
    world = World(
        house=house,
        exchange=exchange,
        market=market,
        clock=clock,
        watch=Watch(exchange, wires, market),
        desk=app.state.desk,
        random=random,
    )
    await market.begin()
    await world.tick()
    for _ in range(random.choice([0, 2, 6])):
        world.stranger()
    await clock.skip(5)
    await world.settle()
    async with house.engine.begin() as connection:
        shadow = random.random() < 0.4
        await turn(connection, "LLM_SHADOW_MODE", shadow, operator="simulated", reason="the beginning")
    await house.start()
    await house.reconcile()
    return world
