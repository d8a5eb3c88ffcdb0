"""Two exchanges' public REST APIs on loopback, answering with bars from tests/data in the exchanges' own formats.

The files are written after the exchanges' documentation, not captured. What the documentation says of the bars holds
here: Kraken sends at most 720 entries after `since`, the forming one always last; Coinbase Exchange sends those between
`start` and `end`, newest first, at most 300.
"""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

DATA = Path(__file__).parents[1] / "data"
HOUR_S = 3600
MAINTENANCE = "<!doctype html><html><title>Scheduled maintenance</title><body>We will be back soon.</body></html>"


class Trouble(StrEnum):
    """What the exchange does instead of answering."""

    NONE = "none"
    TOO_MANY = "too many"
    BROKEN = "broken"
    PAGE = "page"
    BAD_JSON = "bad json"
    WRONG_SHAPE = "wrong shape"
    EMPTY = "empty"
    CUT = "cut"
    SILENT = "silent"
    BUSY = "busy"


def recorded(exchange: str, name: str) -> Any:
    """A recorded answer."""
    return json.loads((DATA / exchange / f"{name}.json").read_text(encoding="utf-8"))


class RecordedExchange:
    """One exchange, at a moment that the test sets: it has the bars that began by then, the last one half done.

    `moved` shifts all recorded bars in time, `missing` leaves out the bars that begin then (by symbol as on the wire),
    `trouble` is what happens to requests whose path contains `trouble_at`, `before_answer` is called before each answer
    goes out, after its content was settled.
    """

    def __init__(self, exchange: str, *, now: datetime, moved: timedelta = timedelta(0)) -> None:
        self.now = now
        self.missing: dict[str, set[datetime]] = {}
        self.trouble = Trouble.NONE
        self.trouble_at = ""
        self.before_answer: Callable[[], None] = lambda: None
        self.paths: list[str] = []
        self._exchange = exchange
        self._moved_s = int(moved.total_seconds())
        self._routes = kraken_routes(self) if exchange == "kraken" else coinbase_routes(self)
        self._server: asyncio.Server | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; on the port of before after a stop."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the port."""
        if self._server is not None:
            self._server.close()
            self._server = None

    @property
    def url(self) -> str:
        """What FORECAST_EXCHANGE_URL is set to."""
        return f"http://127.0.0.1:{self._port}"

    def rows(self, name: str, symbol: str, recorded_rows: list[list[Any]]) -> list[list[Any]]:
        """The recorded rows that exist now, oldest first, by their start in seconds."""
        moment, missing = self.now.timestamp(), {at.timestamp() for at in self.missing.get(symbol, ())}
        moved = [[row[0] + self._moved_s, *row[1:]] for row in sorted(recorded_rows)]
        begun = [row for row in moved if row[0] <= moment and row[0] not in missing]
        if begun and begun[-1][0] + HOUR_S > moment:
            begun[-1] = forming(name, begun[-1])
        return begun

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            target = urlsplit(head.split(" ")[1])
            self.paths.append(target.path)
            query = {name: values[0] for name, values in parse_qs(target.query).items()}
            troubled = self.trouble if self.trouble_at in target.path else Trouble.NONE
            if troubled is Trouble.SILENT:
                await reader.read()
                return
            status, body = self._answer(target.path, query, troubled)
            self.before_answer()
            kind = "text/html" if body.startswith("<") else "application/json"
            length = len(body) + (10 if troubled is Trouble.CUT else 0)
            writer.write(
                f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: {kind}\r\n"
                f"content-length: {length}\r\nconnection: close\r\n\r\n{body}".encode()
            )
            await writer.drain()
        finally:
            writer.close()

    def _answer(self, path: str, query: dict[str, str], trouble: Trouble) -> tuple[HTTPStatus, str]:
        wrong: dict[Trouble, tuple[HTTPStatus, str]] = {
            Trouble.TOO_MANY: (HTTPStatus.TOO_MANY_REQUESTS, '{"message":"Public rate limit exceeded"}'),
            Trouble.BROKEN: (HTTPStatus.INTERNAL_SERVER_ERROR, MAINTENANCE * 100),
            Trouble.PAGE: (HTTPStatus.OK, MAINTENANCE),
            Trouble.BAD_JSON: (HTTPStatus.OK, '{"error":[],"result":{"XXB'),
            Trouble.WRONG_SHAPE: (HTTPStatus.OK, '[["unexpected"],7,null]'),
            Trouble.EMPTY: (HTTPStatus.OK, ""),
            Trouble.BUSY: (HTTPStatus.OK, '{"error":["EService:Busy"]}'),
        }
        if trouble in wrong:
            return wrong[trouble]
        for prefix, route in self._routes.items():
            if path.startswith(prefix):
                status, answer = route(path, query)
                return status, json.dumps(answer)
        return HTTPStatus.NOT_FOUND, '{"message":"NotFound"}'


Answer = tuple[HTTPStatus, Any]
Route = Callable[[str, dict[str, str]], Answer]


def forming(exchange: str, row: list[Any]) -> list[Any]:
    """A bar half way: it has moved nowhere yet, so that a forecast from it would show."""
    if exchange == "kraken":
        return [row[0], row[1], row[1], row[1], row[1], row[1], "0.00100000", 1]
    return [row[0], row[3], row[3], row[3], row[3], 0.001]


def kraken_routes(server: RecordedExchange) -> dict[str, Route]:
    """Kraken's public routes that the feed needs."""

    def bars(_: str, query: dict[str, str]) -> Answer:
        pair = query["pair"]
        if query["interval"] != "60":
            return HTTPStatus.OK, {"error": ["EGeneral:Invalid arguments"]}
        answer = recorded("kraken", f"OHLC-{pair}")
        rows = server.rows("kraken", pair, answer["result"][pair])[-720:]
        newer = [row for row in rows if row[0] > int(query.get("since", "0"))] or rows[-1:]
        return HTTPStatus.OK, {"error": [], "result": {pair: newer, "last": rows[-2][0] if len(rows) > 1 else 0}}

    return {
        "/0/public/AssetPairs": partial(same, recorded("kraken", "AssetPairs")),
        "/0/public/Assets": partial(same, recorded("kraken", "Assets")),
        "/0/public/OHLC": bars,
    }


def coinbase_routes(server: RecordedExchange) -> dict[str, Route]:
    """Coinbase Exchange's public routes that the feed needs."""

    def bars(path: str, query: dict[str, str]) -> Answer:
        symbol = path.split("/")[2]
        start, end = (datetime.fromisoformat(query[name]).astimezone(UTC).timestamp() for name in ("start", "end"))
        if query["granularity"] != str(HOUR_S):
            return HTTPStatus.BAD_REQUEST, {"message": "Unsupported granularity"}
        if (end - start) / HOUR_S > 300:
            return HTTPStatus.BAD_REQUEST, {"message": "granularity too small for the requested time range"}
        rows = server.rows("coinbaseexchange", symbol, recorded("coinbaseexchange", f"candles-{symbol}"))
        return HTTPStatus.OK, [row for row in reversed(rows) if start <= row[0] <= end]

    return {
        "/currencies": partial(same, recorded("coinbaseexchange", "currencies")),
        "/products/": bars,
        "/products": partial(same, recorded("coinbaseexchange", "products")),
    }


def same(answer: Any, _: str, __: dict[str, str]) -> Answer:
    """A route that always answers the same."""
    return HTTPStatus.OK, answer
