"""The calls of Alpaca's wire, each a plain function from the exchange and what is asked to an answer."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal
from http import HTTPStatus
from typing import Any, TypeAlias

from services.paper import wire
from services.paper.asked import Ask, between, page
from services.paper.exchange import Exchange
from services.paper.types import NOT_FOUND, UNIT, Order, Refusal, listed

ORDERS_PAGE = 500
FILLS_PAGE = 100
HUNDRED = Decimal(100)


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and what goes out as JSON; None for nothing."""

    content: Any
    status: int = HTTPStatus.OK


Call: TypeAlias = Callable[[Exchange, Ask], Answer]


def post_order(exchange: Exchange, ask: Ask) -> Answer:
    """Take an order."""
    return Answer(wire.order_json(exchange.submit(wire.read_order(ask.body))))


def get_orders(exchange: Exchange, ask: Ask) -> Answer:
    """A page of orders by when they came; the open ones unless told otherwise."""
    size = ask.count("limit", default=50, most=ORDERS_PAGE)
    status = ask.word("status", "open", "closed", "all")
    names = {name.strip() for name in ask.query.get("symbols", "").split(",") if name.strip()}
    orders = exchange.book.open_orders() if status == "open" else list(exchange.book.orders.values())
    wanted = [
        order for order in orders if (status != "closed" or not order.open) and (not names or order.symbol in names)
    ]
    found = page(between(((order.submitted_at, order) for order in wanted), ask), ask, size=size)
    return Answer([wire.order_json(order) for order in found])


def get_order(exchange: Exchange, ask: Ask) -> Answer:
    """One order."""
    return Answer(wire.order_json(exchange.book.order(ask.path["id"])))


def get_order_by_client_id(exchange: Exchange, ask: Ask) -> Answer:
    """One order, by the id its owner gave it."""
    return Answer(wire.order_json(exchange.book.order_by_client_id(ask.query.get("client_order_id", ""))))


def delete_order(exchange: Exchange, ask: Ask) -> Answer:
    """Cancel an order."""
    exchange.cancel(ask.path["id"])
    return Answer(None, HTTPStatus.NO_CONTENT)


def cancel_everything(exchange: Exchange) -> list[dict[str, Any]]:
    """Cancel all open orders: an item for each, as in the 207 list."""
    return [
        {"id": order_id, "status": 200}
        if refusal is None
        else {"id": order_id, "status": refusal.status, "body": refusal.body}
        for order_id, refusal in exchange.cancel_all()
    ]


def delete_orders(exchange: Exchange, ask: Ask) -> Answer:
    """Cancel all open orders."""
    del ask
    return Answer(cancel_everything(exchange), HTTPStatus.MULTI_STATUS)


def symbol_of(exchange: Exchange, ask: Ask) -> str:
    """The symbol of the position in the path. A pair has no slash there. Raises `Refusal` (404)."""
    symbol = ask.path["symbol"]
    for held in exchange.ledger.positions:
        if listed(held) == symbol:
            return held
    raise Refusal(404, NOT_FOUND, "position does not exist")


def get_positions(exchange: Exchange, ask: Ask) -> Answer:
    """All positions."""
    del ask
    held = sorted(exchange.ledger.positions.values(), key=lambda position: position.symbol)
    return Answer([wire.position_json(exchange, position) for position in held])


def get_position(exchange: Exchange, ask: Ask) -> Answer:
    """One position."""
    return Answer(wire.position_json(exchange, exchange.ledger.positions[symbol_of(exchange, ask)]))


def delete_position(exchange: Exchange, ask: Ask) -> Answer:
    """Close a position, or a part of it: `qty`, or `percentage` rounded down to 9 places."""
    symbol = symbol_of(exchange, ask)
    qty, percentage = ask.query.get("qty"), ask.query.get("percentage")
    if qty and percentage:
        raise Refusal(422, 40010001, "qty and percentage cannot both be given")
    wanted = wire.read_decimal("qty", qty) if qty else None
    if percentage:
        share = wire.read_decimal("percentage", percentage)
        if share > HUNDRED:
            raise Refusal(422, 40010001, "invalid percentage: at most 100")
        wanted = (abs(exchange.ledger.held(symbol)) * share / HUNDRED).quantize(UNIT, rounding=ROUND_DOWN)
    return Answer(wire.order_json(exchange.close(symbol, qty=wanted)))


def close_item(symbol: str, result: Order | Refusal) -> dict[str, Any]:
    """An item of the 207 list."""
    if isinstance(result, Refusal):
        return {"symbol": listed(symbol), "status": result.status, "body": result.body}
    return {"symbol": listed(symbol), "status": 200, "body": wire.order_json(result)}


def delete_positions(exchange: Exchange, ask: Ask) -> Answer:
    """Close all positions; with `cancel_orders=true` cancel all open orders before. Only small letters are read."""
    if ask.word("cancel_orders", "false", "true") == "true":
        cancel_everything(exchange)
    items = [close_item(symbol, result) for symbol, result in exchange.close_all()]
    return Answer(items, HTTPStatus.MULTI_STATUS)


def get_account(exchange: Exchange, ask: Ask) -> Answer:
    """The account."""
    del ask
    return Answer(wire.account_json(exchange))


def get_clock(exchange: Exchange, ask: Ask) -> Answer:
    """The market's clock."""
    del ask
    return Answer(wire.clock_json(exchange))


def get_fills(exchange: Exchange, ask: Ask) -> Answer:
    """A page of executions; `page_token` is the id of the last one seen."""
    size = ask.count("page_size", default=FILLS_PAGE, most=FILLS_PAGE)
    fills = exchange.book.fills
    token = ask.query.get("page_token")
    if token:
        place = exchange.book.fill_place(token)
        if place is None:
            raise Refusal(422, 40010001, "invalid page_token")
        fills = fills[:place] if ask.newest_first() else fills[place + 1 :]
    found = page(between(((fill.at, fill) for fill in fills), ask), ask, size=size)
    return Answer([wire.fill_json(fill) for fill in found])


CALLS: dict[str, Call] = {
    "POST /v2/orders": post_order,
    "GET /v2/orders": get_orders,
    "DELETE /v2/orders": delete_orders,
    "GET /v2/orders:by_client_order_id": get_order_by_client_id,
    "GET /v2/orders/{id}": get_order,
    "DELETE /v2/orders/{id}": delete_order,
    "GET /v2/positions": get_positions,
    "DELETE /v2/positions": delete_positions,
    "GET /v2/positions/{symbol}": get_position,
    "DELETE /v2/positions/{symbol}": delete_position,
    "GET /v2/account": get_account,
    "GET /v2/clock": get_clock,
    "GET /v2/account/activities/FILL": get_fills,
}
