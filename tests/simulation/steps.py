"""What may happen, one step after the other, as a seed has it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import text

from libs.switches import Switch, turn
from libs.trading.halt import new_halt
from libs.trading.halts import record
from libs.trading.panic.report import unfinished
from libs.trading.rearm import RearmRefused, TooEarly, rearm
from services.paper.faults import FAULT
from tests.simulation.house import Death
from tests.simulation.invariants import must
from tests.simulation.orders import Orders
from tests.simulation.wire import DEATHS, HAPPENINGS, Mishap
from tests.simulation.world import World

SPACE = UUID("5151d6a3-3f0e-4c8b-9d5e-5d2ae1d3a001")
DESK_CONNECTIONS = text(
    """
    select pg_terminate_backend(pid) from pg_stat_activity
    where application_name = 'lexi-api-gate' and datname = current_database()
    """
)
OPEN_HALTS = text("select count(*) from halts where rearmed_at is null")

AN_HOUR_S = 3600.0
BROKER_CALLS = [
    ("POST", "/v2/orders"),
    ("GET", "/v2/orders"),
    ("GET", "/v2/positions"),
    ("DELETE", "/v2/positions"),
    ("DELETE", "/v2/orders"),
]
FAULTS: list[dict[str, Any]] = [
    {"kind": "fail_close", "where": "bulk", "times": 1},
    {"kind": "fail_close", "where": "both", "times": 2},
    {"kind": "fail_cancel", "where": "bulk", "times": 1},
    {"kind": "slow_cancel", "for_s": 3.0, "times": 2},
    {"kind": "slow_cancel", "for_s": None, "times": 1},
    {"kind": "reappear", "after_ms": 30.0},
    {"kind": "reject", "how": "refuse", "times": 1},
    {"kind": "reject", "how": "later", "times": 1},
    {"kind": "market", "open": False, "for_s": 60.0},
    {"kind": "hold_fills", "for_s": 20.0},
]
"""What the broker itself may do wrong."""


class Steps:
    """Takes steps in a world; every choice comes from `random`."""

    def __init__(self, world: World, random: Random) -> None:
        self._world = world
        self._house = world.house
        self._random = random
        self._count = 0
        self.orders = orders = Orders(world, random)
        self._weighted: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (9, orders.entries),
            (5, orders.same_again),
            (3, orders.another_body),
            (3, orders.ask_first),
            (6, orders.reduce),
            (6, self.tick),
            (3, self.wait),
            (4, self.reconcile),
            (3, self.switch),
            (3, self.broker_fault),
            (2, self.wire_fault),
            (2, self.api_dies),
            (1, self.database_hiccup),
            (1, self.halt_elsewhere),
            (1, self.halt_by_hand),
            (2, self.panic),
            (2, self.panic_in_a_crowd),
            (3, self.panic_dies),
            (2, self.stranger),
            (9, self.rearm),
        ]

    async def take(self) -> str:
        """Take one step; returns its name."""
        weights, steps = zip(*self._weighted, strict=True)
        step = self._random.choices(steps, weights)[0]
        self._world.trail.append(step.__name__)
        await step()
        return step.__name__

    # ---- the world

    async def tick(self) -> None:
        """The market moves, or what is known is judged again."""
        world = self._world
        if self._random.random() < 0.3:
            await world.market.judge_again(world.clock.monotonic())
        else:
            await world.tick()

    async def wait(self) -> None:
        """Time passes."""
        await self._world.clock.skip(self._random.choice([0.05, 1.0, 10.0, 65.0, 600.0, 1000.0]))
        await self._world.settle()
        if self._random.random() < 0.8:
            await self._house.reconcile()

    async def reconcile(self) -> None:
        """The jobs have their turn."""
        await self._house.reconcile()

    async def switch(self) -> None:
        """An operator turns a switch."""
        switches: list[Switch] = ["LLM_SHADOW_MODE", "LLM_SHADOW_MODE", "ORDER_GATE_DISABLED"]
        name = self._random.choice(switches)
        value = self._random.random() < 0.4
        async with self._house.engine.begin() as connection:
            minutes = 5 if name == "ORDER_GATE_DISABLED" and value else None
            await turn(connection, name, value, operator="simulated", reason="a seed", minutes=minutes)

    async def broker_fault(self) -> None:
        """The broker begins to do something wrong, or is well again."""
        faults = self._world.exchange.faults
        if self._random.random() < 0.4:
            faults.clear()
            return
        fault = FAULT.validate_python(self._random.choice(FAULTS))
        self._world.watch.returning |= fault.kind == "reappear"
        faults.add(fault, self._world.exchange.now)

    async def wire_fault(self) -> None:
        """Something will happen to a call that comes."""
        method, path = self._random.choice(BROKER_CALLS)
        what = self._random.choice(HAPPENINGS)
        who = self._random.choice(["api", "panic", "jobs"])
        late = self._random.choice([0.3, 2.0, 4.5])
        self._house.wires.plan(who, Mishap(what, method, path, self._random.choice([1, 1, 2]), late))

    async def api_dies(self) -> None:
        """The api dies on the way of an order: between commit and broker, or between broker and record."""
        what = self._random.choice(DEATHS)
        held = self._world.exchange.ledger.positions
        if held and self._random.random() < 0.4:
            self._house.wires.plan("api", Mishap(what, *self._random.choice(BROKER_CALLS[2:4])))
            await self.orders.reduce()
        else:
            self._house.wires.plan("api", Mishap(what, "POST", "/v2/orders"))
            await self.orders.entries()
        if self._random.random() < 0.5:
            await self._house.restart_api()

    async def database_hiccup(self) -> None:
        """The gate's connection breaks in the middle of orders."""

        async def cut() -> None:
            async with self._house.engine.connect() as connection:
                await connection.execute(DESK_CONNECTIONS)

        await asyncio.gather(self.orders.entries(), cut())

    async def stranger(self) -> None:
        """Somebody else trades on the account."""
        self._world.stranger()

    # ---- halts

    async def halt_elsewhere(self) -> None:
        """Another disk's halt reaches Postgres."""
        self._count += 1
        halt = new_halt(uuid5(SPACE, str(self._count)), "elsewhere", at=self._world.clock.now(), ttl_minutes=0)
        async with self._house.engine.begin() as connection:
            await record(connection, halt)

    async def halt_by_hand(self) -> None:
        """Somebody makes the file with `touch`, while orders are between verdict and broker."""
        moment = self._random.uniform(0, 0.005)

        def touch() -> None:
            time.sleep(moment)
            self._house.halt_file.path.touch()

        await asyncio.gather(self.orders.entries(), asyncio.to_thread(touch))

    async def _exit(self, death: Death | None = None) -> None:
        calm = self._world.calm and death is None
        answer = await self._world.panic(death)
        if answer is not None:
            self._world.watch.check_exit(answer, calm=calm)

    async def panic(self) -> None:
        """A panic exit, and mostly the way back."""
        await self._exit()
        if self._random.random() < 0.7:
            await self.rearm()

    async def panic_in_a_crowd(self) -> None:
        """A panic exit while orders come, some of them slowly."""
        slow = Mishap("late", "POST", "/v2/orders", 1, self._random.choice([0.1, 1.0, 4.0]))
        self._house.wires.plan("api", slow)
        delays = [self._random.choice([0.0, 0.0, 0.01, 0.2, 1.5]) for _ in range(3)]
        bodies = [self.orders.body() for _ in delays]
        self.orders.sent += bodies

        async def order(body: dict[str, Any], delay: float) -> None:
            await asyncio.sleep(delay)
            await self.orders.place(body)

        async def leave() -> None:
            await asyncio.sleep(self._random.choice([0.0, 0.005, 0.1]))
            answer = await self._world.panic(None)
            if answer is not None:
                self._world.watch.check_exit(answer, calm=False)

        await asyncio.gather(leave(), *map(order, bodies, delays))

    async def panic_dies(self) -> None:
        """A panic exit dies at some step, once or twice; orders come; then it is resumed to its end."""
        for _ in range(self._random.choice([1, 1, 2])):
            if self._random.random() < 0.5:
                what = self._random.choice(DEATHS)
                self._house.wires.plan("panic", Mishap(what, *self._random.choice(BROKER_CALLS[1:])))
                await self._exit()
            else:
                how = self._random.choice(["before", "after", "torn"])
                await self._exit(Death(self._random.randint(1, 14), how))
            await self.orders.entries()
            if self._random.random() < 0.3:
                await self.rearm()
        if unfinished(self._house.journal()) is not None:
            await self._exit()
        if self._random.random() < 0.7:
            await self.rearm()

    async def rearm(self) -> None:
        """A person tries to re-arm; it only works where nothing speaks against it."""
        world = self._world
        await world.settle()
        await self._house.copy()
        try:
            await rearm(
                self._house.engine,
                self._house.jobs_broker,
                self._house.halt_file,
                operator="simulated",
                reason="a seed",
            )
        except RearmRefused as refused:
            if isinstance(refused, TooEarly):
                await world.clock.skip(AN_HOUR_S)
            return
        held, open_orders = world.exchange.ledger.positions, world.exchange.book.open_orders()
        must(not held and not open_orders, "re-armed while the broker was not flat")
        must(unfinished(self._house.journal()) is None, "re-armed while an exit was unfinished")
        must(not await world.halted(), "re-armed and still halted")
        world.watch.note_rearmed()
