"""A broker in memory that speaks Alpaca's wire and misbehaves on request; over httpx or over a real socket.

Market orders fill at the first request after they were taken, unless `fills` is False or the market is closed. What is
closed is held: a second close of the same quantity is refused, as Alpaca does. `script` sees each call first and may
answer it, or raise.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import httpx

START = datetime(2026, 1, 5, 15, 0, tzinfo=UTC)
FINAL = {"filled", "canceled", "expired", "rejected"}

Answer = tuple[int, Any]


class Reset(Exception):
    """The connection is to be reset; `after` the work was done, or before."""

    def __init__(self, *, after: bool = False) -> None:
        super().__init__("reset")
        self.after = after


@dataclass
class FakeBroker:
    """The state, and how it misbehaves."""

    positions: dict[str, Decimal] = field(default_factory=dict[str, Decimal])
    orders: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    fills: bool = True
    market_open: bool = True
    stuck_cancels: set[str] = field(default_factory=set[str])
    refuse_cancel: Counter[str] = field(default_factory=Counter[str])
    refuse_close: Counter[str] = field(default_factory=Counter[str])
    reappear: dict[str, Decimal] = field(default_factory=dict[str, Decimal])
    script: Callable[[str, str, int], Answer | None] | None = None
    calls: list[str] = field(default_factory=list[str])
    turned: list[str] = field(default_factory=list[str])
    waiting: list[str] = field(default_factory=list[str])
    lock: threading.RLock = field(default_factory=threading.RLock)

    def hold(self, symbol: str, qty: int) -> None:
        """Have a position."""
        self.positions[symbol] = Decimal(qty)

    def rest(self, symbol: str, side: str, qty: int, *, kind: str = "limit") -> str:
        """Have an open order; returns its id."""
        return self._new_order(symbol, side, Decimal(qty), kind)["id"]

    def open(self) -> list[dict[str, Any]]:
        """The open orders."""
        return [order for order in self.orders.values() if order["status"] not in FINAL]

    def answer(self, method: str, target: str) -> Answer:
        """One call. Raises `Reset`."""
        with self.lock:
            self._fill_waiting()
            parts = urlsplit(target)
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            call = f"{method} {parts.path}"
            self.calls.append(call)
            try:
                scripted = self.script(method, parts.path, self.calls.count(call)) if self.script else None
            except Reset as reset:
                if reset.after:
                    self._do(method, parts.path, query)
                raise
            return scripted or self._do(method, parts.path, query)

    def _do(self, method: str, path: str, query: dict[str, str]) -> Answer:
        head, _, subject = path.removeprefix("/v2/").partition("/")
        subject = unquote(subject)
        if method == "GET":
            return self._read(head, subject, query)
        if head == "orders":
            return self._cancel(subject) if subject else (207, [self._cancel_item(order) for order in self.open()])
        if subject:
            qty = Decimal(query["qty"]) if "qty" in query else None
            return self._close(subject, qty)
        return 207, [self._close_item(symbol) for symbol in list(self.positions)]

    def _read(self, head: str, subject: str, query: dict[str, str]) -> Answer:
        if head == "clock":
            later = (START + timedelta(hours=1)).isoformat()
            said = {"timestamp": START.isoformat(), "is_open": self.market_open}
            return 200, {**said, "next_open": later, "next_close": later}
        if head == "positions":
            held = [_position(symbol, qty) for symbol, qty in self.positions.items()]
            return 200, held
        found = [order for order in self.orders.values() if query.get("status") == "all" or order in self.open()]
        if "after" in query:
            since = datetime.fromisoformat(query["after"])
            found = [order for order in found if datetime.fromisoformat(order["submitted_at"]) > since]
        return (200, self.orders[subject]) if subject else (200, found[: int(query.get("limit", "50"))])

    def _cancel(self, order_id: str) -> Answer:
        order = self.orders.get(order_id)
        if order is None:
            return 404, {"code": 40410000, "message": f"order not found for {order_id}"}
        status = self._cancel_item(order)["status"]
        return (204, None) if status == 200 else (422, {"code": 42210000, "message": "order is not cancelable"})

    def _cancel_item(self, order: dict[str, Any]) -> dict[str, Any]:
        if self.refuse_cancel[order["id"]] > 0:
            self.refuse_cancel[order["id"]] -= 1
            return {"id": order["id"], "status": 500}
        if order["status"] in FINAL:
            return {"id": order["id"], "status": 422}
        order["status"] = "pending_cancel" if order["id"] in self.stuck_cancels else "canceled"
        return {"id": order["id"], "status": 200}

    def _close_item(self, symbol: str) -> dict[str, Any]:
        status, body = self._close(symbol, None)
        return {"symbol": symbol, "status": status, "body": body}

    def _close(self, symbol: str, qty: Decimal | None) -> Answer:
        held = self.positions.get(symbol)
        if held is None:
            return 404, {"code": 40410000, "message": "position does not exist"}
        if self.refuse_close[symbol] > 0:
            self.refuse_close[symbol] -= 1
            return 500, {"code": 50010000, "message": "internal server error occurred"}
        side = "sell" if held > 0 else "buy"
        mine = [order for order in self.open() if order["symbol"] == symbol and order["side"] == side]
        taken = sum((Decimal(order["qty"]) for order in mine), Decimal(0))
        wanted = abs(held) if qty is None else qty
        if wanted > abs(held) - taken:
            message = f"insufficient qty available for order (requested: {wanted}, available: {abs(held) - taken})"
            return 403, {"code": 40310000, "message": message, "existing_qty": str(held), "symbol": symbol}
        order = self._new_order(symbol, side, wanted, "market")
        self.waiting.append(order["id"])
        return 200, dict(order)

    def _fill_waiting(self) -> None:
        if not (self.fills and self.market_open):
            return
        for order_id in self.waiting:
            order = self.orders[order_id]
            if order["status"] in FINAL:
                continue
            order["status"], order["filled_qty"] = "filled", order["qty"]
            self._move(order["symbol"], Decimal(order["qty"]) * (1 if order["side"] == "buy" else -1))
        self.waiting.clear()

    def _move(self, symbol: str, by: Decimal) -> None:
        before = self.positions.pop(symbol, Decimal(0))
        after = before + by
        if before * after < 0 or (not before and after):
            self.turned.append(symbol)
        if not after and symbol in self.reappear:
            after = self.reappear.pop(symbol)
        if after:
            self.positions[symbol] = after

    def _new_order(self, symbol: str, side: str, qty: Decimal, kind: str) -> dict[str, Any]:
        number = len(self.orders) + 1
        order = {
            "id": f"o-{number}",
            "client_order_id": f"c-{number}",
            "symbol": symbol,
            "side": side,
            "qty": str(qty),
            "filled_qty": "0",
            "filled_avg_price": None,
            "limit_price": "10.5" if kind == "limit" else None,
            "type": kind,
            "status": "new",
            "submitted_at": (START + timedelta(milliseconds=number)).isoformat(),
        }
        self.orders[f"o-{number}"] = order
        return order

    def transport(self) -> httpx.MockTransport:
        """For `Broker(transport=…)`."""

        def handle(request: httpx.Request) -> httpx.Response:
            try:
                status, body = self.answer(request.method, str(request.url))
            except Reset as reset:
                raise httpx.ReadError("connection reset by peer", request=request) from reset
            return httpx.Response(status) if body is None else httpx.Response(status, json=body)

        return httpx.MockTransport(handle)


def _position(symbol: str, qty: Decimal) -> dict[str, Any]:
    side = "long" if qty > 0 else "short"
    prices = {"avg_entry_price": "10", "current_price": "11"}
    return {"symbol": symbol, "qty": str(qty), "qty_available": str(qty), "side": side, **prices}


class Server(ThreadingHTTPServer):
    """The fake over a real socket, on a free port of loopback. The next `silent` requests are read and not answered."""

    daemon_threads = True

    def __init__(self, fake: FakeBroker) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fake = fake
        self.silent = 0
        self.ended = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def server_close(self) -> None:
        """Let go of the silent ones too."""
        self.ended.set()
        super().server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def desk(self) -> Server:
        return cast("Server", self.server)

    def _answer(self) -> None:
        if self.desk.silent > 0:
            self.desk.silent -= 1
            self.desk.ended.wait()
            return
        try:
            status, body = self.desk.fake.answer(self.command, self.path)
        except Reset:
            self.connection.close()
            self.close_connection = True
            return
        content = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by http.server
        """Says nothing."""
