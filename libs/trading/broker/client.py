"""The one door to the broker: Alpaca's wire over httpx, every call with its own limits, nothing ever sent twice.

A call that fails raises what one may conclude from it (`errors`). Nothing is retried here: whether something may be
sent again is the caller's to know.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http import HTTPStatus
from typing import Self
from urllib.parse import quote

import httpx

from libs.trading.broker import wire
from libs.trading.broker.address import BrokerAddress
from libs.trading.broker.connections import open_connections
from libs.trading.broker.errors import BrokerRefused, BrokerUncertain, BrokerUnreachable
from libs.trading.broker.types import (
    Account,
    BrokerOrder,
    BrokerPosition,
    BrokerSide,
    Fill,
    ItemResult,
    MarketClock,
)

CALL_LIMIT_S = 5.0
MAX_CLIENT_ORDER_ID = 48
_ORDERS_PAGE = 500
_FILLS_PAGE = 100
_MOST_PAGES = 10_000
_MOST_BYTES = 32_000_000
_NOT_FOUND = 40410000
_NOT_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)
_MAY_BE_SENT = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError, RuntimeError)


class Broker:
    """A broker that speaks Alpaca's v2 wire.

    `call_limit_s` bounds each request in all; calls that fetch several pages make several. `transport` replaces the
    network. Every method raises `BrokerUnreachable`, `BrokerUncertain` or `BrokerRefused`.
    """

    def __init__(
        self,
        address: BrokerAddress,
        *,
        call_limit_s: float = CALL_LIMIT_S,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.address = address
        self._limit_s = call_limit_s
        self._client = open_connections(address, call_limit_s=call_limit_s, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limit_s):
                await self._client.aclose()

    async def submit_limit(
        self, *, symbol: str, side: BrokerSide, qty: Decimal, limit_price: Decimal, client_order_id: str
    ) -> BrokerOrder:
        """Send a limit order: for the day, or, where the symbol is a pair, until it is cancelled: pairs have no day.

        On `BrokerUncertain` look it up by `client_order_id`; never send it again.
        """
        if not 1 <= len(client_order_id) <= MAX_CLIENT_ORDER_ID:
            raise ValueError(f"a client_order_id has 1 to {MAX_CLIENT_ORDER_ID} characters")
        body = {
            "symbol": symbol,
            "side": side,
            "qty": format(qty, "f"),
            "type": "limit",
            "limit_price": format(limit_price, "f"),
            "time_in_force": "gtc" if "/" in symbol else "day",
            "client_order_id": client_order_id,
        }
        answer = await self._call("POST", "/v2/orders", body=body)
        return wire.read(wire.order, answer, call="POST /v2/orders")

    async def order(self, order_id: str) -> BrokerOrder:
        """One order by the broker's id."""
        path = _path("GET", "/v2/orders", order_id)
        return wire.read(wire.order, await self._call("GET", path), call=f"GET {path}")

    async def order_by_client_id(self, client_order_id: str) -> BrokerOrder | None:
        """One order by our id, None where the broker knows of none."""
        path = "/v2/orders:by_client_order_id"
        try:
            answer = await self._call("GET", path, query={"client_order_id": client_order_id})
        except BrokerRefused as refused:
            if _denied(refused):
                return None
            raise
        return wire.read(wire.order, answer, call=f"GET {path}")

    async def open_orders(self) -> list[BrokerOrder]:
        """Every order the broker lists as open, oldest first."""
        return await self._orders("open", None)

    async def orders_after(self, moment: datetime) -> list[BrokerOrder]:
        """Every order submitted after a moment, whatever became of it, oldest first."""
        return await self._orders("all", moment)

    async def _orders(self, status: str, after: datetime | None) -> list[BrokerOrder]:
        found: dict[str, BrokerOrder] = {}
        query = {"status": status, "limit": str(_ORDERS_PAGE), "direction": "asc", "nested": "false"}
        for _ in range(_MOST_PAGES):
            if after is not None:
                query["after"] = _moment(after)
            page = wire.read_list(wire.order, await self._call("GET", "/v2/orders", query=query), call="GET /v2/orders")
            fresh = {order.id: order for order in page if order.id not in found}
            found |= fresh
            if len(page) < _ORDERS_PAGE:
                return list(found.values())
            if not fresh:
                raise BrokerUncertain("GET /v2/orders: more orders of one moment than fit a page")
            # A page ends within a moment: the next one begins just before it and what is known already is left out.
            after = page[-1].submitted_at - timedelta(microseconds=1)
        raise BrokerUncertain(f"GET /v2/orders: no end after {_MOST_PAGES} pages")

    async def cancel(self, order_id: str) -> bool:
        """Ask for an order's end. False: it is beyond cancelling. `BrokerRefused` (404): no such order."""
        try:
            await self._call("DELETE", _path("DELETE", "/v2/orders", order_id))
        except BrokerRefused as refused:
            if refused.status == HTTPStatus.UNPROCESSABLE_ENTITY:
                return False
            raise
        return True

    async def cancel_all(self) -> list[ItemResult]:
        """Ask for the end of every open order: one result each, by the order's id."""
        call = "DELETE /v2/orders"
        return wire.items(await self._call("DELETE", "/v2/orders"), subject="id", call=call)

    async def positions(self) -> list[BrokerPosition]:
        """Every position that is not zero, by the symbols of the broker's list: the pair BTC/USD is BTCUSD there."""
        call = "GET /v2/positions"
        held = wire.read_list(wire.position, await self._call("GET", "/v2/positions"), call=call)
        return [position for position in held if position.qty != 0]

    async def position(self, symbol: str) -> BrokerPosition | None:
        """One position, None where there is none. A pair is asked for, and told, without its slash."""
        try:
            path = _path("GET", "/v2/positions", _held_as(symbol))
            answer = await self._call("GET", path)
        except BrokerRefused as refused:
            if _denied(refused):
                return None
            raise
        return wire.read(wire.position, answer, call=f"GET {path}")

    async def close_position(self, symbol: str, qty: Decimal | None = None) -> BrokerOrder:
        """Close a position, or `qty` of it, at the market; this can neither open nor flip one."""
        path = _path("DELETE", "/v2/positions", _held_as(symbol))
        query = {} if qty is None else {"qty": format(abs(qty), "f")}
        return wire.read(wire.order, await self._call("DELETE", path, query=query), call=f"DELETE {path}")

    async def close_all(self) -> list[ItemResult]:
        """Close every position at the market: one result each, by symbol. Open orders stay."""
        answer = await self._call("DELETE", "/v2/positions", query={"cancel_orders": "false"})
        return wire.items(answer, subject="symbol", call="DELETE /v2/positions")

    async def identity(self) -> str:
        """What tells this account from any other: the broker's name and the number it gives the account."""
        return f"{self.address.name}:{(await self.account()).account_number}"

    async def account(self) -> Account:
        """The account."""
        return wire.read(wire.account, await self._call("GET", "/v2/account"), call="GET /v2/account")

    async def clock(self) -> MarketClock:
        """The market's clock."""
        return wire.read(wire.clock, await self._call("GET", "/v2/clock"), call="GET /v2/clock")

    async def fills_after(self, moment: datetime | None) -> list[Fill]:
        """Every execution after a moment, or all, oldest first."""
        path = "/v2/account/activities/FILL"
        found: dict[str, Fill] = {}
        query = {"direction": "asc", "page_size": str(_FILLS_PAGE)}
        if moment is not None:
            query["after"] = _moment(moment)
        for _ in range(_MOST_PAGES):
            page = wire.read_list(wire.fill, await self._call("GET", path, query=query), call=f"GET {path}")
            fresh = {fill.id: fill for fill in page if fill.id not in found}
            found |= fresh
            if len(page) < _FILLS_PAGE:
                return list(found.values())
            if not fresh:
                raise BrokerUncertain(f"GET {path}: the same page came again")
            query["page_token"] = page[-1].id
        raise BrokerUncertain(f"GET {path}: no end after {_MOST_PAGES} pages")

    async def _call(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: object = None
    ) -> object:
        call = f"{method} {path}"
        try:
            request = self._client.build_request(method, path, params=query, json=body)
        except (httpx.InvalidURL, ValueError) as error:
            raise BrokerUnreachable(f"{call}: cannot be written: {type(error).__name__}") from error
        try:
            async with asyncio.timeout(self._limit_s):
                response = await self._client.send(request, stream=True)
                content = await _whole(call, response)
        except TimeoutError as error:
            raise BrokerUncertain(f"{call}: no answer within {self._limit_s:g} s") from error
        except _NOT_SENT as error:
            raise BrokerUnreachable(f"{call}: {self.address.base_url} cannot be reached: {_said(error)}") from error
        except httpx.LocalProtocolError:
            # Its words quote what was to be sent, the key with it.
            raise BrokerUncertain(f"{call}: the request cannot be written as HTTP") from None
        except _MAY_BE_SENT as error:
            raise BrokerUncertain(f"{call}: {_said(error)}") from error
        return _answer(call, response, content)


async def _whole(call: str, response: httpx.Response) -> bytes:
    """The answer's body. Raises `BrokerUncertain` for one that does not end."""
    parts = bytearray()
    try:
        async for part in response.aiter_bytes():
            parts += part
            if len(parts) > _MOST_BYTES:
                raise BrokerUncertain(f"{call}: the answer is longer than {_MOST_BYTES} bytes")
    finally:
        await response.aclose()
    return bytes(parts)


def _answer(call: str, response: httpx.Response, body: bytes) -> object:
    status = response.status_code
    content = wire.content(body)
    if response.is_success:
        if content is None and status != HTTPStatus.NO_CONTENT and body:
            raise BrokerUncertain(f"{call}: {status} with an answer that is not JSON")
        return content
    code, message = wire.error_in(content)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.REQUEST_TIMEOUT:
        raise BrokerUncertain(f"{call}: {status} {message}".rstrip())
    raise BrokerRefused(call, status, code=code, message=message or response.reason_phrase)


def _path(method: str, folder: str, name: str) -> str:
    """The path of one thing. Raises `BrokerRefused` for a name that would make it the path of all of them."""
    if name in {"", ".", ".."}:
        raise BrokerRefused(f"{method} {folder}", HTTPStatus.NOT_FOUND, code=_NOT_FOUND, message=f"{name!r} names none")
    return f"{folder}/{quote(name, safe='', errors='replace')}"


def _held_as(symbol: str) -> str:
    """A symbol as the broker lists positions: without the slash of a pair, which it answers with 404."""
    return symbol.replace("/", "")


def _denied(refused: BrokerRefused) -> bool:
    """Whether the broker itself says that there is no such thing. A 404 without its code may come from anybody."""
    return refused.status == HTTPStatus.NOT_FOUND and (refused.code or 0) // 10_000 == _NOT_FOUND // 10_000


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
