"""The steps of a panic exit's round: cancel everything, wait, close everything, and look."""

import asyncio
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from libs.trading.broker.client import Broker
from libs.trading.broker.errors import BrokerError, BrokerRefused, BrokerUncertain
from libs.trading.broker.types import INSUFFICIENT_QTY, BrokerOrder, ItemResult
from libs.trading.panic.ground import Clock, Pace, Patience
from libs.trading.panic.picture import Picture
from libs.trading.panic.record import Record

_AT_ONCE = 8
_ASK_AGAIN_S = 1.0
_CLOSE_PAUSES_S = (0.0, 0.25, 0.5, 1.0)
_NOT_FOUND = 404
_TOO_MANY = 429


class Steps:
    """What can be done to the broker. Every step is written to the journal before it, and its outcome after.

    `answered` tells whether the broker answered the round's last call that was to change something; `until` is when the
    time is up.
    """

    def __init__(self, record: Record, broker: Broker, clock: Clock, *, patience: Patience, until: float) -> None:
        self._record = record
        self._broker = broker
        self._clock = clock
        self._patience = patience
        self.until = until
        self._asked: dict[str, float] = {}
        self.answered = False

    @property
    def time_is_up(self) -> bool:
        """Whether the overall limit has been reached."""
        return self._clock.monotonic() >= self.until

    async def cancel_all(self, number: int) -> None:
        """Ask for the end of every open order. Those that it fails for stay in the list that is read next."""
        record = self._record
        record.say("cancelling all orders")
        await record.write("cancel_all", {"round": number})
        items = await record.attempt("cancel all", self._broker.cancel_all())
        self.answered = items is not None
        if items is None:
            await record.write("cancel_all_result", {"error": record.errors["cancel all"]})
            return
        now = self._clock.monotonic()
        self._asked = {item.subject: now for item in items if item.ok}
        failed = [_failure(item) for item in items if not item.ok]
        await record.write(
            "cancel_all_result", {"cancelled": [item.subject for item in items if item.ok], "failed": failed}
        )
        record.say(f"the broker agreed to cancel {len(self._asked)} orders and refused {len(failed)}")

    async def until_no_order(self, *, first: bool) -> list[BrokerOrder] | None:
        """Wait, bounded, until no order is open. Returns those that are, None where they could not be read."""
        until = self._clock.monotonic() + (self._patience.cancel_s if first else self._patience.cancel_again_s)
        pace = Pace(self._clock)
        await self._record.write("wait_for_orders", {})
        while True:
            orders = await self._record.attempt("read the open orders", self._broker.open_orders())
            if orders == [] or (orders is None and not self.answered):
                return orders
            now = self._clock.monotonic()
            if orders:
                await self._cancel_each([order for order in orders if self._due(order, now)], until=until)
            if now >= until or self.time_is_up:
                return orders
            await pace.rest()

    def _due(self, order: BrokerOrder, now: float) -> bool:
        asked = self._asked.get(order.id)
        return asked is None or (order.status != "pending_cancel" and now - asked >= _ASK_AGAIN_S)

    async def _cancel_each(self, orders: Sequence[BrokerOrder], *, until: float) -> None:
        if not orders:
            return
        for start in range(0, len(orders), _AT_ONCE):
            if start and self._clock.monotonic() >= until:
                break
            await self._cancel_batch(orders[start : start + _AT_ONCE])

    async def _cancel_batch(self, batch: Sequence[BrokerOrder]) -> None:
        await self._record.write("cancel_each", {"orders": [order.id for order in batch]})
        agreed: list[str] = []
        failed: list[dict[str, Any]] = []
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._cancel_one(order)) for order in batch]
        for order, outcome in zip(batch, (task.result() for task in asked), strict=True):
            self._asked[order.id] = self._clock.monotonic()
            if outcome is None:
                agreed.append(order.id)
            else:
                failed.append({"subject": order.id, "message": outcome})
        await self._record.write("cancel_each_result", {"cancelled": agreed, "failed": failed})

    async def _cancel_one(self, order: BrokerOrder) -> str | None:
        try:
            agreed = await self._broker.cancel(order.id)
        except Exception as error:  # noqa: BLE001 - one order must not keep the others
            return self._record.failed(order.id, error)
        self._record.errors.pop(order.id, None)
        return None if agreed else "the broker says that it can no longer be cancelled"

    async def close_all(self, number: int, orders: list[BrokerOrder] | None) -> None:
        """Close every position, given the orders that are still open.

        Where one of these closes a position already, only the rest of that position is closed, so that the two
        together cannot turn it around.
        """
        record = self._record
        await record.write("read_positions", {})
        positions = await record.attempt("read the positions", self._broker.positions())
        if positions == []:
            return
        picture = Picture(orders=tuple(orders or ()), positions=tuple(positions or ()))
        if positions is not None:
            await record.write("read", picture.summary())
        if any(picture.being_closed(position) for position in picture.positions):
            await self._close_rest(picture)
            return
        record.say("closing all positions")
        await record.write("close_all", {"round": number})
        items = await record.attempt("close all", self._broker.close_all())
        self.answered = items is not None
        if items is None:
            await record.write("close_all_result", {"error": record.errors["close all"]})
            return
        made = [described(item.order) for item in items if item.ok and item.order is not None]
        failed = [item for item in items if not item.ok and item.status != _NOT_FOUND]
        await record.write("close_all_result", {"orders": made, "failed": [_failure(item) for item in failed]})
        record.say(f"the broker took {len(items) - len(failed)} closing orders and refused {len(failed)}")
        for item in items:
            record.errors.pop(item.subject, None)
        for item in failed:
            record.errors[item.subject or "close all"] = _failure(item)["message"]
        await self._close_each({item.subject: None for item in failed if item.subject})

    async def _close_rest(self, picture: Picture) -> None:
        rest: dict[str, Decimal | None] = {}
        for position in picture.positions:
            closing = picture.being_closed(position)
            left = abs(position.qty) - closing
            if left > 0:
                rest[position.symbol] = left if closing else None
        await self._close_each(rest)

    async def _close_each(self, wanted: dict[str, Decimal | None]) -> None:
        """Close positions one by one; a quantity still held by a slow cancel is waited for a little."""
        for pause in _CLOSE_PAUSES_S:
            if not wanted or (pause and self.time_is_up):
                return
            if pause:
                await self._clock.sleep(pause)
            wanted = await self._close_pass(wanted)

    async def _close_pass(self, wanted: dict[str, Decimal | None]) -> dict[str, Decimal | None]:
        """One attempt for each; returns what is worth another one in this round."""
        again: dict[str, Decimal | None] = {}
        symbols = list(wanted)
        for start in range(0, len(symbols), _AT_ONCE):
            if start and self.time_is_up:
                break
            batch = {symbol: wanted[symbol] for symbol in symbols[start : start + _AT_ONCE]}
            again |= await self._close_batch(batch)
        return again

    async def _close_batch(self, batch: dict[str, Decimal | None]) -> dict[str, Decimal | None]:
        made: list[dict[str, Any]] = []
        failed: list[dict[str, Any]] = []
        again: dict[str, Decimal | None] = {}
        asked = {symbol: "all" if qty is None else str(qty) for symbol, qty in batch.items()}
        await self._record.write("close_each", {"positions": asked})
        async with asyncio.TaskGroup() as group:
            closing = [group.create_task(self._close_one(symbol, qty)) for symbol, qty in batch.items()]
        for symbol, outcome in zip(batch, (task.result() for task in closing), strict=True):
            if isinstance(outcome, BrokerOrder):
                made.append(described(outcome))
            elif outcome is not None:
                failed.append({"subject": symbol, "message": self._record.errors[symbol]})
                if _worth_another(outcome):
                    again[symbol] = batch[symbol]
        await self._record.write("close_each_result", {"orders": made, "failed": failed})
        return again

    async def _close_one(self, symbol: str, qty: Decimal | None) -> BrokerOrder | Exception | None:
        """The closing order, the failure, or None where there is nothing to close any more."""
        try:
            order = await self._broker.close_position(symbol, qty)
        except Exception as error:  # noqa: BLE001 - one position must not keep the others
            gone = isinstance(error, BrokerRefused) and error.status == _NOT_FOUND
            if gone:
                self._record.errors.pop(symbol, None)
                return None
            self._record.failed(symbol, error)
            return error
        self._record.errors.pop(symbol, None)
        return order

    async def look(self) -> Picture | None:
        """Open orders, then positions; None where either could not be read."""
        orders = await self._record.attempt("read the open orders", self._broker.open_orders())
        if orders is None:
            return None
        positions = await self._record.attempt("read the positions", self._broker.positions())
        if positions is None:
            return None
        return Picture(orders=tuple(orders), positions=tuple(positions))

    async def market_is_closed(self) -> bool:
        """Whether the broker says so; not knowing is no."""
        clock = await self._record.attempt("read the market's clock", self._broker.clock())
        return clock is not None and not clock.is_open


def _worth_another(error: Exception) -> bool:
    """Refusals that time heals. What may have arrived is left to the next round, which cancels it first."""
    if isinstance(error, BrokerUncertain) or not isinstance(error, BrokerError):
        return False
    return not isinstance(error, BrokerRefused) or error.code == INSUFFICIENT_QTY or error.status == _TOO_MANY


def _failure(item: ItemResult) -> dict[str, Any]:
    number = f" {item.code}" if item.code is not None else ""
    return {"subject": item.subject, "message": f"{item.status}{number} {item.message}".rstrip()}


def described(order: BrokerOrder) -> dict[str, Any]:
    """A closing order, for the journal."""
    return {"id": order.id, "symbol": order.symbol, "side": order.side, "qty": str(order.qty)}
