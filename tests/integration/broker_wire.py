"""A small account that speaks Alpaca's wire on a port, for processes of their own."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

ORDER = {
    "client_order_id": "c",
    "symbol": "AAPL",
    "side": "buy",
    "qty": "5",
    "filled_qty": "0",
    "type": "limit",
    "limit_price": "9.5",
    "status": "new",
    "submitted_at": "2026-01-05T15:00:00Z",
}
ACCOUNT = {"id": "i", "account_number": "PA1", "equity": "1", "last_equity": "1", "status": "ACTIVE"}
POSITION = {
    "symbol": "AAPL",
    "qty": "3",
    "qty_available": "3",
    "side": "long",
    "avg_entry_price": "10",
    "current_price": "11",
}


class BrokerWire:
    """What is held and open. While `stuck`, cancelling and closing are taken and nothing comes of them.

    Until `slow` is set, no call is answered.
    """

    def __init__(self) -> None:
        self.orders: list[dict[str, Any]] = []
        self.positions: list[dict[str, Any]] = []
        self.stuck = False
        self.slow: asyncio.Event | None = None
        self.calls: list[str] = []
        self.url = ""

    async def answer(self, request: Request) -> Response:
        """One call."""
        call = f"{request.method} {request.url.path}"
        self.calls.append(call)
        if self.slow is not None:
            await self.slow.wait()
        if call == "GET /v2/clock":
            moment = "2026-01-05T15:00:00Z"
            return JSONResponse({"timestamp": moment, "is_open": True, "next_open": moment, "next_close": moment})
        if call == "GET /v2/account":
            return JSONResponse(ACCOUNT)
        if call == "DELETE /v2/orders":
            items = [{"id": order["id"], "status": 200} for order in self.orders]
            self.orders = self.orders if self.stuck else []
            return JSONResponse(items, status_code=207)
        if call == "DELETE /v2/positions":
            items = [self._closing(position) for position in self.positions]
            self.positions = self.positions if self.stuck else []
            return JSONResponse(items, status_code=207)
        return JSONResponse(self.orders if request.url.path == "/v2/orders" else self.positions)

    def _closing(self, position: dict[str, Any]) -> dict[str, Any]:
        symbol = position["symbol"]
        if self.stuck:
            return {"symbol": symbol, "status": 500, "body": {"code": 50010000, "message": "not now"}}
        order = {**ORDER, "id": f"close-{symbol}", "symbol": symbol, "side": "sell", "type": "market"}
        return {"symbol": symbol, "status": 200, "body": {**order, "limit_price": None}}


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Any:
        yield


@asynccontextmanager
async def broker_wire() -> AsyncGenerator[BrokerWire, None]:
    """An account on a free port."""
    wire = BrokerWire()
    methods = ["GET", "DELETE"]
    app = Starlette(routes=[Route("/v2/{path:path}", wire.answer, methods=methods)])
    server = _Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        wire.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield wire
        finally:
            server.should_exit = True
            await serving
