"""What leaves this house goes where its settings say, and nowhere that an answer or a request says."""

import ast
import asyncio
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import httpx
import pytest

from libs.upstreams.clock import CallClock
from libs.upstreams.config import UpstreamEntry
from libs.upstreams.errors import Refused
from libs.upstreams.types import TimeLimits
from libs.upstreams.vendor import VendorRoad
from libs.upstreams.wire import Wire

ROOT = Path(__file__).parents[2]

CLIENTS = {
    "libs/alerts.py": "ALERT_WEBHOOK_URL",
    "libs/tracing/sdk.py": "OTEL_EXPORTER_OTLP_ENDPOINT",
    "libs/trading/broker/client.py": "PAPER_URL, ALPACA_BASE_URL",
    "libs/trading/broker/connections.py": "PAPER_URL, ALPACA_BASE_URL",
    "libs/trading/panic/alarm.py": "ALERT_WEBHOOK_URL",
    "libs/upstreams/vendor.py": "configs/upstreams.yaml",
    "libs/upstreams/wire.py": "LLM_BASE_URL, configs/upstreams.yaml",
    "services/analytics/console/house.py": "API_URL",
    "services/analytics/console/mount.py": "API_URL",
    "services/forecast/feed/exchange.py": "FORECAST_FEED=ccxt:EXCHANGE, which ccxt knows the address of",
    "services/paper/memory.py": "an app in the same process",
    "services/jobs/main.py": "ALERT_WEBHOOK_URL",
}
"""Every file of libs and services that can open a connection to another process, and the setting that says where to."""
WATCHDOG = "services/watchdog/"
"""It speaks to the Docker engine and to what it restarts: WATCHDOG_* say where both are."""

SPEAK_HTTP = frozenset(
    {
        "httpx",
        "httpx2",
        "openai",
        "aiohttp",
        "requests",
        "urllib3",
        "urllib.request",
        "http.client",
        "ccxt",
        "websockets",
    }
)
CONNECT = frozenset({"create_connection", "open_connection", "create_unix_connection", "open_unix_connection"})
FOLLOWS = frozenset({"follow_redirects", "allow_redirects", "max_redirects"})


def modules() -> Iterator[tuple[str, ast.Module]]:
    for folder in ("libs", "services"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def speaks(tree: ast.Module) -> bool:
    """Whether a module can reach another machine by HTTP or a bare socket."""
    found = {name for name in imported(tree) for known in SPEAK_HTTP if name == known or name.startswith(f"{known}.")}
    calls = {
        node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    return bool(found) or bool(calls & CONNECT)


def test_only_known_files_reach_out() -> None:
    speaking = {place for place, tree in modules() if speaks(tree)}
    new = {place for place in speaking - set(CLIENTS) if not place.startswith(WATCHDOG)}
    assert not new, f"a new way out: name its setting here and in docs/security.md: {new}"
    assert set(CLIENTS) <= speaking, f"no longer there: {set(CLIENTS) - speaking}"


def test_nobody_follows_redirects() -> None:
    for place, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg in FOLLOWS:
                assert isinstance(node.value, ast.Constant), place
                assert node.value.value is False, f"{place} follows redirects"


def test_every_session_of_requests_which_would_follow_them_is_told_not_to() -> None:
    for place, tree in modules():
        source = ast.unparse(tree)
        assert source.count("requests.Session(") == source.count("session.max_redirects = 0"), place
        assert not re.search(r"\brequests\.(get|post|put|request)\(", source), place


def test_the_vendors_client_which_would_follow_them_is_told_not_to() -> None:
    source = (ROOT / "libs" / "upstreams" / "vendor.py").read_text(encoding="utf-8")
    assert re.search(r"DefaultAsyncHttpxClient\(follow_redirects=False\)", source)
    assert source.count("AsyncOpenAI(") == source.count("http_client=http)")


@asynccontextmanager
async def redirecting() -> AsyncGenerator[tuple[str, list[bytes]]]:
    """A server that sends everybody to another path of its own, and what it was asked."""
    asked: list[bytes] = []

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        where = f"http://127.0.0.1:{port}/elsewhere".encode()
        writer.write(b"HTTP/1.1 307 Temporary Redirect\r\nlocation: " + where + b"\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(redirect, "127.0.0.1", 0) as server:
        port: int = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", asked


async def test_a_hosted_api_that_redirects_is_an_error_and_nobody_else_is_asked() -> None:
    async with redirecting() as (origin, asked):
        entry = UpstreamEntry("hosted", model="m", base_url=f"{origin}/v1", dialect="openai", slots=1)
        road = VendorRoad(entry)
        clock = CallClock(TimeLimits(connect_s=5, first_token_s=5, idle_s=5, total_s=5), monotonic())
        with pytest.raises(Refused) as refused:
            await road.open({"model": "m", "messages": [], "stream": True}, clock)
        await road.close()
    assert refused.value.status == 307
    assert [request.split(b" ")[1] for request in asked] == [b"/v1/chat/completions"]


async def test_the_thin_client_hands_a_redirect_on_as_the_answer() -> None:
    async with redirecting() as (origin, asked):
        wire = Wire(origin)
        async with await wire.send("POST", "/v1/chat/completions", body=b"{}") as exchange:
            assert await exchange.head() == 307
        wire.close()
    assert len(asked) == 1


@pytest.mark.parametrize("client", [httpx.Client, httpx.AsyncClient])
def test_clients_of_this_release_follow_none_unless_told(client: type[httpx.Client | httpx.AsyncClient]) -> None:
    assert client().follow_redirects is False


URL_WORDS = ("url", "uri", "host", "webhook", "callback", "endpoint", "address", "proxy")


def test_no_route_takes_an_address_to_go_to() -> None:
    """No field that a request may set is named like an address."""
    for place, tree in modules():
        if not place.startswith(("services/api", "services/analytics", "services/sidecar")) or "settings" in place:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and any("BaseModel" in ast.unparse(base) for base in node.bases):
                fields = [
                    part.target.id
                    for part in node.body
                    if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
                ]
                named = [field for field in fields if any(word in field.lower() for word in URL_WORDS)]
                assert not named, f"{place}: {node.name}: {named}"
