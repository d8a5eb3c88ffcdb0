"""Orders as a strategy sends them: sensible ones, the same again, other bodies under known ids, exits."""

import asyncio
from decimal import Decimal
from random import Random
from typing import Any

from tests.simulation.house import Answered
from tests.simulation.invariants import must
from tests.simulation.market import TICKERS
from tests.simulation.world import World


class Orders:
    """Sends orders to the api of a world and remembers what came of them; every choice comes from `random`."""

    def __init__(self, world: World, random: Random) -> None:
        self._world = world
        self._house = world.house
        self._random = random
        self._count = 0
        self._told: dict[str, Answered] = {}
        self.sent: list[dict[str, Any]] = []

    def body(self, **changes: Any) -> dict[str, Any]:
        """An entry that makes sense, with changes."""
        self._count += 1
        ticker = changes.get("ticker") or self._random.choice(list(TICKERS))
        signal = self._world.market.latest[ticker]
        side = signal.side if signal.side != "none" and self._random.random() < 0.8 else "buy"
        body: dict[str, Any] = {
            "ticker": ticker,
            "side": side,
            "qty": self._random.choice(["1", "10", "25", "2.5", "400"]),
            "ref_price": str(self._world.market.prices[ticker]),
            "client_order_id": f"order-{self._count}",
        }
        return body | changes

    async def place(self, body: dict[str, Any], *, send: bool = True) -> Answered:
        """Ask; what was told must be what was told before, and nothing passes that had to be stopped."""
        halted = await self._world.halted()
        answer = await self._house.post(body, send=send)
        if halted and await self._world.halted() and not body.get("reduce_only"):
            stopped = answer.denied or answer.status in {0, 503} or self._known(body)
            must(stopped, f"an entry passed while halted: {answer}")
        before = self._told.get(body["client_order_id"])
        if before is not None and answer.status == 200:
            same = answer.body["verdict_id"] == before.body["verdict_id"]
            must(same, f"the same order got another verdict: {before} then {answer}")
        if answer.status == 200 and answer.body["verdict_id"] is not None:
            self._told[body["client_order_id"]] = answer
        return answer

    def _known(self, body: dict[str, Any]) -> bool:
        return body["client_order_id"] in self._told or body in self.sent

    async def entries(self) -> None:
        """A few entries at the same moment."""
        bodies = [self.body() for _ in range(self._random.choice([1, 1, 2, 4]))]
        self.sent += bodies
        await asyncio.gather(*(self.place(body) for body in bodies))

    async def same_again(self) -> None:
        """An order that came before comes again, perhaps twice at once."""
        if self.sent:
            body = self._random.choice(self.sent[-8:])
            await asyncio.gather(*(self.place(body) for _ in range(self._random.choice([1, 2]))))

    async def another_body(self) -> None:
        """An id that was used for something else never gets anything sent."""
        if not self.sent:
            return
        known = self._random.choice(self.sent[-8:])
        qty = "7" if known["qty"] != "7" else "8"
        answer = await self._house.post(known | {"qty": qty})
        stored = answer.status not in {0, 503} and answer.body.get("verdict_id") is not None
        first_came = known["client_order_id"] in self._told or await self._world.has_verdict(
            known["client_order_id"], qty=known["qty"]
        )  # an exit that never became an order leaves its id free
        must(not (stored and first_came) or "DUPLICATE" in answer.reasons, f"another body passed: {answer}")
        if known.get("reduce_only") and not first_came:
            self._world.watch.exits.append((known["ticker"], Decimal(qty)))

    async def ask_first(self) -> None:
        """A verdict first, the order after it."""
        body = self.body()
        asked = await self.place(body, send=False)
        self.sent.append(body)
        if self._random.random() < 0.7:
            sent = await self.place(body)
            must(not asked.denied or sent.status != 200, f"denied at the gate and sent all the same: {sent}")

    async def reduce(self) -> None:
        """An order that makes a position smaller, or claims to."""
        held = self._world.exchange.ledger.positions
        symbol = self._random.choice(sorted(held)) if held else "AAA"
        position = self._world.exchange.ledger.held(symbol)
        parts = [position, position, (position / 4).to_integral_value(), position * 2 + 1]
        wanted = abs(self._random.choice(parts)) or Decimal(3)
        body = self.body(
            ticker=symbol,
            side="sell" if position > 0 else "buy",
            qty=format(wanted, "f"),
            reduce_only=True,
            client_order_id=f"exit-{self._count}",
        )
        self._world.watch.exits.append((symbol, wanted))
        self.sent.append(body)
        moving = any(order.symbol == symbol for order in self._world.exchange.book.open_orders())
        answer = await self.place(body)
        if wanted > abs(position) and not moving and position == self._world.exchange.ledger.held(symbol):
            must(answer.status != 200, f"a claim to reduce {position} by {wanted} passed: {answer}")
        if self._random.random() < 0.2:
            await self._house.restart_api()
        if self._random.random() < 0.5:
            await self.place(body)
