"""A process's line to the broker: it remembers every call, and things happen to calls on request.

Calls pass into the paper broker's app in memory. What may happen to one: the process dies before or after it, the
connection is refused or cut, the answer never comes, or comes late.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, TypeAlias

import httpx

from services.paper.memory import PaperTransport

Happening: TypeAlias = Literal[
    "die_before",
    "die_after",
    "refused",
    "cut_before",
    "cut_after",
    "silent_before",
    "silent_after",
    "late",
    "error_after",
]
HAPPENINGS: tuple[Happening, ...] = (
    "refused",
    "cut_before",
    "cut_after",
    "silent_before",
    "silent_after",
    "late",
    "error_after",
)
DEATHS: tuple[Happening, ...] = ("die_before", "die_after")
FOR_EVER_S = 1e6


class Died(BaseException):
    """The process ended here, as by kill -9."""


@dataclass(slots=True)
class Sent:
    """One call as it left a process. `halted` is whether the halt file stood at that moment; `status` 0: never came."""

    who: str
    method: str
    path: str
    query: dict[str, str]
    body: dict[str, Any]
    halted: bool
    at: float
    status: int = 0

    @property
    def is_entry(self) -> bool:
        """Whether it sends a new order."""
        return (self.method, self.path) == ("POST", "/v2/orders")

    @property
    def is_close(self) -> bool:
        """Whether it closes one position."""
        return self.method == "DELETE" and self.path.startswith("/v2/positions/")

    @property
    def came_through(self) -> bool:
        """Whether the broker did what it says."""
        return 200 <= self.status < 300

    @property
    def qty(self) -> Decimal:
        """The quantity of an entry or a close."""
        return Decimal(self.body.get("qty") or self.query.get("qty") or 0)


@dataclass(slots=True)
class Mishap:
    """What happens to the `nth` call that begins so, counted from now on; `seconds` is for a late one."""

    what: Happening
    method: str
    path: str
    nth: int = 1
    seconds: float = 0.0

    def strikes(self, call: Sent) -> bool:
        """Count a call and say whether it is the one."""
        if call.method != self.method or not call.path.startswith(self.path):
            return False
        self.nth -= 1
        return self.nth == 0


@dataclass(slots=True)
class Wires:
    """All calls of all processes, and the mishaps that wait for one."""

    halted: Callable[[], bool]
    calls: list[Sent] = field(default_factory=list[Sent])
    mishaps: list[tuple[str, Mishap]] = field(default_factory=list[tuple[str, Mishap]])

    def plan(self, who: str, mishap: Mishap) -> None:
        """Have something happen to a call of that process."""
        self.mishaps.append((who, mishap))

    def struck(self, call: Sent) -> Mishap | None:
        """The mishap of this call."""
        found = [(who, mishap) for who, mishap in self.mishaps if who == call.who and mishap.strikes(call)]
        for each in found:
            self.mishaps.remove(each)
        return found[0][1] if found else None


class Line(httpx.AsyncBaseTransport):
    """The transport of one process's broker client."""

    def __init__(self, who: str, wires: Wires, inner: PaperTransport) -> None:
        self._who = who
        self._wires = wires
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Carry one call."""
        body = await request.aread()
        call = Sent(
            self._who,
            request.method,
            request.url.path,
            dict(request.url.params),
            json.loads(body) if body else {},
            self._wires.halted(),
            asyncio.get_running_loop().time(),
        )
        self._wires.calls.append(call)
        mishap = self._wires.struck(call)
        what = None if mishap is None else mishap.what
        await self._before(what, 0.0 if mishap is None else mishap.seconds, request=request)
        response = await self._inner.handle_async_request(request)
        call.status = response.status_code
        await self._after(what, request=request)
        if what == "error_after":
            return httpx.Response(503, json={"code": 50010000, "message": "internal server error occurred"})
        return response

    async def _before(self, what: Happening | None, seconds: float, *, request: httpx.Request) -> None:
        match what:
            case "die_before":
                raise Died
            case "refused":
                raise httpx.ConnectError("connection refused", request=request)
            case "cut_before":
                raise httpx.ReadError("connection reset", request=request)
            case "silent_before":
                await asyncio.sleep(FOR_EVER_S)
            case "late":
                await asyncio.sleep(seconds)
            case _:
                pass

    async def _after(self, what: Happening | None, *, request: httpx.Request) -> None:
        match what:
            case "die_after":
                raise Died
            case "cut_after":
                raise httpx.ReadError("connection reset", request=request)
            case "silent_after":
                await asyncio.sleep(FOR_EVER_S)
            case _:
                pass
