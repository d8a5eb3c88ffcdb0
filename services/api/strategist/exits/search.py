"""Looks at the broker for closes without an answer. The broker names such orders itself, so their form has to tell."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Generator
from contextlib import contextmanager
from decimal import Decimal

import structlog

from libs.trading.broker.client import Broker
from libs.trading.broker.errors import BrokerError
from libs.trading.types import Order
from services.api.strategist.exits.memory import Memory
from services.api.strategist.exits.types import CLOCKS_DIFFER, Exit, answered, form_of, may_be_close_of
from services.api.strategist.submission import LOOK_AGAIN_S

LOOK_S = 10.0
"""How long the caller of a close without an answer waits while it is looked for."""

log = structlog.get_logger(__name__)


class Search:
    """Matches lost closes with the broker's orders, each order with one close at most."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._calling: Counter[tuple[str, str, Decimal]] = Counter()
        self._looking: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @contextmanager
    def calling(self, order: Order) -> Generator[None]:
        """While a close is on its way, an order of its form may be its own, and is nobody else's."""
        self._calling[form_of(order)] += 1
        try:
            yield
        finally:
            self._calling[form_of(order)] -= 1

    async def look_for(self, begun: Exit, memory: Memory) -> Exit:
        """A close that got no answer a moment ago, with its order where it arrived."""
        try:
            async with asyncio.timeout(LOOK_S):
                for pause in LOOK_AGAIN_S:
                    await asyncio.sleep(pause)
                    found = await self.match(begun, memory)
                    if found is not None and found.broker_id is not None:
                        return found
        except TimeoutError:
            log.info("exit_not_found_in_time", ticker=begun.order.ticker)
        return begun

    async def match(self, lost: Exit, memory: Memory) -> Exit | None:
        """The exit with the broker's order that looks like it, taken at once; itself without one.

        None where that cannot be told: no answer, another such close on its way, or it was tried again since.
        """
        async with self._looking[lost.order.ticker]:
            try:
                orders = await self._broker.orders_after(lost.at - CLOCKS_DIFFER)
            except BrokerError as error:
                log.info("exit_not_looked_up", ticker=lost.order.ticker, error=str(error))
                return None
            now = memory.held.get(lost.name)
            if now is None or now.verdict_id != lost.verdict_id or self._calling[form_of(lost.order)]:
                return None
            if not now.lost:
                return now  # somebody else was quicker
            taken = memory.taken()
            found = next((each for each in orders if each.id not in taken and may_be_close_of(lost, each)), None)
            if found is None:
                return lost
            done = memory.held[lost.name] = answered(lost, found)
            return done
