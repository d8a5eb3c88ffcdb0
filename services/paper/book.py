"""The book of orders and fills: what came, in which order, and under which ids. Pure."""

from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid5

from services.paper.types import INVALID, NOT_FOUND, Changes, Fill, Kept, NewOrder, Order, Refusal

TICK = timedelta(microseconds=1)


class Book:
    """Every order and fill of an account, none ever forgotten."""

    def __init__(self, kept: Kept, changes: Changes) -> None:
        self.orders = {order.id: order for order in kept.orders}
        self.fills = list(kept.fills)
        self.changes = changes
        self._space = UUID(kept.account.id)
        self._by_client_id = {order.client_order_id: order for order in kept.orders}
        self._open = {order.id: order for order in kept.orders if order.open}
        self._fill_places = {fill.id: place for place, fill in enumerate(kept.fills)}
        stamps = [order.submitted_at for order in kept.orders[-1:]] + [fill.at for fill in kept.fills[-1:]]
        self._last_stamp = max(stamps, default=kept.account.created_at)

    def open_orders(self) -> list[Order]:
        """Orders that may still fill, oldest first."""
        return list(self._open.values())

    def order(self, order_id: str) -> Order:
        """An order by its id. Raises `Refusal` (404)."""
        if order_id not in self.orders:
            raise Refusal(404, NOT_FOUND, f"order not found for {order_id}")
        return self.orders[order_id]

    def order_by_client_id(self, client_order_id: str) -> Order:
        """An order by the id its owner gave it. Raises `Refusal` (404)."""
        if client_order_id not in self._by_client_id:
            raise Refusal(404, NOT_FOUND, f"order not found for {client_order_id}")
        return self._by_client_id[client_order_id]

    def fill_place(self, fill_id: str) -> int | None:
        """Where a fill stands in `fills`, None when there is none of that id."""
        return self._fill_places.get(fill_id)

    def check_unused(self, client_order_id: str) -> None:
        """Raises `Refusal` (422) where an order had this id, at any time."""
        if client_order_id in self._by_client_id:
            raise Refusal(422, INVALID, "client_order_id must be unique")

    def enter(self, asked: NewOrder, *, now: datetime, slices: int) -> Order:
        """Put an order into the book; one without an id of its owner's gets one."""
        seq = len(self.orders) + 1
        at = self._stamp(now)
        order = Order(
            id=self._id(f"order-{seq}"),
            seq=seq,
            client_order_id=asked.client_order_id or self._id(f"client-{seq}"),
            symbol=asked.symbol,
            side=asked.side,
            type=asked.type,
            time_in_force=asked.time_in_force,
            qty=asked.qty,
            limit_price=asked.limit_price,
            closing=asked.closing,
            slices_left=slices,
            submitted_at=at,
            updated_at=at,
        )
        self.orders[order.id] = self._by_client_id[order.client_order_id] = self._open[order.id] = order
        self.note(order)
        return order

    def note(self, order: Order) -> None:
        """Mark an order as changed, and forget it among the open ones once it has ended."""
        self.changes.orders[order.id] = order
        if not order.open:
            self._open.pop(order.id, None)

    def record(self, order: Order, qty: Decimal, *, price: Decimal, now: datetime) -> Fill:
        """Write down an execution; the order says already what is filled."""
        seq = len(self.fills) + 1
        at = self._stamp(now)
        fill = Fill(
            id=f"{at:%Y%m%d%H%M%S}{at.microsecond // 1000:03d}::{self._id(f'fill-{seq}')}",
            seq=seq,
            order_id=order.id,
            symbol=order.symbol,
            side=order.side,
            qty=qty,
            price=price,
            at=at,
            cum_qty=order.filled_qty,
            leaves_qty=order.leaves,
        )
        self._fill_places[fill.id] = len(self.fills)
        self.fills.append(fill)
        self.changes.fills.append(fill)
        return fill

    def _stamp(self, now: datetime) -> datetime:
        """This moment, or just after the last one given: no two orders or fills share one, so pages lose none."""
        self._last_stamp = max(now, self._last_stamp + TICK)
        return self._last_stamp

    def _id(self, name: str) -> str:
        """An id that no other thing of this account has."""
        return str(uuid5(self._space, name))
