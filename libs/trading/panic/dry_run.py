"""What a panic exit would do: reads only, and nothing is halted."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from libs.trading.broker.client import Broker
from libs.trading.broker.errors import BrokerError
from libs.trading.broker.types import BrokerOrder, BrokerPosition
from libs.trading.panic.picture import closing_side
from libs.trading.panic.record import Request


async def dry_run(
    request: Request, broker: Broker, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> dict[str, Any]:
    """The contract's answer with `would_cancel` and `would_close`; `halted_until` is what would be.

    FAILED where the broker cannot be read, since a list that is not known to be whole is worse than none.
    """
    failures: list[str] = []
    orders: list[BrokerOrder] = []
    positions: list[BrokerPosition] = []
    try:
        orders = await broker.open_orders()
        positions = await broker.positions()
    except BrokerError as error:
        failures.append(str(error))
    return {
        "ok": not failures,
        "exit_id": str(request.exit_id),
        "state": "FAILED" if failures else "DRY_RUN",
        "positions_closed": 0,
        "orders_cancelled": 0,
        "failures": failures,
        "ttl_minutes": request.ttl_minutes,
        "halted_until": (now() + timedelta(minutes=request.ttl_minutes)).isoformat(),
        "would_cancel": [] if failures else [_cancelled(order) for order in orders],
        "would_close": [] if failures else [_closed(position) for position in positions],
    }


def _cancelled(order: BrokerOrder) -> dict[str, Any]:
    return {
        "id": order.id,
        "client_order_id": order.client_order_id,
        "symbol": order.symbol,
        "side": order.side,
        "qty": str(order.qty),
        "filled_qty": str(order.filled_qty),
        "type": order.type,
        "limit_price": None if order.limit_price is None else str(order.limit_price),
        "status": order.status,
    }


def _closed(position: BrokerPosition) -> dict[str, Any]:
    return {
        "symbol": position.symbol,
        "side": closing_side(position),
        "qty": str(abs(position.qty)),
        "current_price": str(position.current_price),
    }
