"""Is the console quick with a million forecasts and calls, and what do ten people cost who look at it?

On a Postgres of its own with 1,000,000 forecasts and as many calls, `services.api`, `services.analytics` and a fake
engine run as they are deployed, and a headless Chromium looks. Printed: how long each page takes until it can be used
(its heading stands and nothing on it is still being read), how soon a forecast is on the screen after its row was
committed, and the CPU that ten open consoles add to both services, by their processes' CPU clocks. Ends with 1 where a
limit is missed, and says so where Playwright or Chromium is not installed (`make install-browser`).
"""

import asyncio
import importlib
import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from bench.database import migrated
from bench.gateway.machine import free_port
from bench.storage import FEED, FIRST, STEP, TICKERS, fill
from libs.db.engine import DatabaseSettings, create_engine
from libs.keys import digest
from services.forecast.feed.types import Bar
from services.forecast.numbers import Numbers
from services.forecast.repository import Repository
from services.forecast.rows import Forecast
from tools.local_stack.postgres import EmbeddedPostgres

ROWS = 1_000_000
SCOPES = ["read", "admin", "switch", "panic", "rearm", "infer"]
PAGES = ("/", "/forecasts", "/gate", "/prompts", "/evaluations", "/calls", "/calls?key=none", "/panic")
USABLE = """() => document.querySelector("h1, [role=heading][aria-level='1']")
    && !/(Reading…|not looked at yet)/.test(document.body.innerText)"""
MOST_USABLE_S = 1.5
MOST_ON_SCREEN_S = 1.0
MOST_API_SHARE = 0.02
CONSOLES = 10
WATCHED_S = 20.0
TICKS = 12
ALLOWS: dict[str, Any] = {"allow": True, "reasons": []}
CALLS = text(
    """
    insert into llm_calls (ts, id, service, prompt_key, prompt_version, prompt_hash, upstream, model, subject, success,
      status, total_ms, tokens_in, tokens_out)
    select at, (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || '7000a' ||
        substr(md5(n::text), 1, 15))::uuid,
      'forecast', case when n % 2 = 0 then 'policy' else 'rationale' end, '1.0.0', 'hash', 'lexi', 'Lexi', 'T0001',
      n % 100 <> 0, case when n % 100 <> 0 then 'ok' else 'invalid' end, 80, 400, 60
    from generate_series(cast(:first as integer), cast(:last as integer)) n,
      lateral (select cast(:begin as timestamptz) + n * interval '500 milliseconds' as at) moment
    """
)


class NotMeasured(Exception):
    """There is no browser here; the message says what to install."""


@dataclass(frozen=True, slots=True)
class Services:
    """The two services under measurement, and the key that signs in."""

    api: psutil.Process
    analytics: psutil.Process
    address: str
    key: str

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds of both so far, user and system."""
        return used_s(self.api), used_s(self.analytics)


def used_s(process: psutil.Process) -> float:
    """CPU seconds of a process so far."""
    times = process.cpu_times()
    return times.user + times.system


async def filled(engine: AsyncEngine) -> Repository:
    """A million forecasts with heads, and a million calls."""
    repository = Repository(engine, horizon="1d")
    await repository.begin_run(FEED, "replay")
    moments = ROWS // len(TICKERS)
    await fill(engine, 0, moments)
    begin = datetime.now(UTC) - timedelta(seconds=ROWS / 2)
    for day in range(8):
        async with engine.begin() as connection:
            await connection.execute(
                text("select ensure_partition('llm_calls', 'day', :m)"), {"m": begin + timedelta(days=day)}
            )
    for first in range(1, ROWS, 100_000):
        async with engine.begin() as connection:
            await connection.execute(CALLS, {"first": first, "last": first + 99_999, "begin": begin})
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("vacuum analyze llm_calls"))
    return repository


async def tick(repository: Repository, number: int, words: str, *, names: Sequence[str] = TICKERS[:5]) -> None:
    """Store one moment, later with each `number`, as the forecast loop does; the rationale says `words`."""
    at = FIRST + STEP * (ROWS // len(TICKERS)) + timedelta(seconds=number)
    llm: dict[str, Any] = {
        "v": 1,
        "rationale": {"text": words},
        "policy": {"status": "ok", "decision": {**ALLOWS, "flags": []}, "rules": ALLOWS},
        "inputs": {"signal": {"side": "buy"}},
    }
    rows = [Forecast(uuid4(), name, 100.0, Numbers("theta", 101.0, 99.0, 103.0), None, llm) for name in names]
    bars = dict.fromkeys(names, Bar(at, 100.0, 101.0, 99.0, 100.5, 1e6))
    await repository.store_tick(FEED, at, bars=bars, forecasts=rows, complete=True)


@contextmanager
def started(folder: Path, module: str, *, port: int, ready: str, env: dict[str, str]) -> Generator[psutil.Process]:
    """A module of ours as a process, until the block ends."""
    with (folder / f"{module}.log").open("wb") as log:
        child = subprocess.Popen([sys.executable, "-m", *module.split()], env=os.environ | env, stdout=log, stderr=log)
    try:
        answers(f"http://127.0.0.1:{port}{ready}")
        yield psutil.Process(child.pid)
    finally:
        child.terminate()
        child.wait(20)


def answers(url: str) -> None:
    """Wait until something answers there, whatever it says."""
    for _ in range(300):
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - our own http address
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{url} does not answer")


@contextmanager
def services(folder: Path, database: str) -> Generator[Services]:
    """The api and the analytics on a database, with a fake engine behind them."""
    model, api, analytics = (free_port() for _ in range(3))
    key = "lexi_" + secrets.token_urlsafe(32)
    entry = {"name": "bench", "sha256": digest(key), "scopes": SCOPES}
    (folder / "keys.json").write_text(json.dumps([entry]), encoding="utf-8")
    env = {
        "DATABASE_URL": database,
        "LOCAL_STATE": str(folder),
        "API_PORT": str(api),
        "ANALYTICS_PORT": str(analytics),
        "API_URL": f"http://127.0.0.1:{api}",
        "LLM_BASE_URL": f"http://127.0.0.1:{model}/v1",
    }
    engine = f"tests.fakes.engine --port {model} --reply-by-constraint"
    with ExitStack() as stack:
        stack.enter_context(started(folder, engine, port=model, ready="/health", env={}))
        first = stack.enter_context(started(folder, "services.api", port=api, ready="/ready", env=env))
        second = stack.enter_context(started(folder, "services.analytics", port=analytics, ready="/ready", env=env))
        yield Services(first, second, f"http://127.0.0.1:{analytics}", key)


@asynccontextmanager
async def signed_in(place: Services) -> AsyncGenerator[Any]:
    """A browser's context with a session. Raises `NotMeasured`."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None or find_spec("playwright") is None:
        raise NotMeasured("no Chromium with Playwright here: make install-browser")
    playwright: Any = importlib.import_module("playwright.async_api")
    async with playwright.async_playwright() as driver:
        chromium = await driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        context = await chromium.new_context()
        page = await context.new_page()
        await page.goto(f"{place.address}/sign-in?next=/panic")
        await page.fill("#key", place.key)
        await page.click("button.act")
        await page.wait_for_url("**/panic")
        await page.close()
        yield context
        await chromium.close()


async def usable_s(context: Any, address: str) -> float:
    """Seconds until a page can be used, the median of five visits after one."""
    times: list[float] = []
    for _ in range(6):
        page = await context.new_page()
        begun = time.perf_counter()
        await page.goto(address)
        await page.wait_for_function(USABLE, polling="raf")
        times.append(time.perf_counter() - begun)
        await page.close()
    return statistics.median(times[1:])


async def on_screen_s(page: Any, repository: Repository) -> Sequence[float]:
    """Seconds from a row's commit until its rationale is on the page."""
    times: list[float] = []
    for number in range(TICKS):
        words = f"mark {uuid4().hex}"
        await tick(repository, 2000 + number, words)
        begun = time.perf_counter()
        await page.wait_for_function("each => document.body.textContent.includes(each)", arg=words, polling="raf")
        times.append(time.perf_counter() - begun)
        await asyncio.sleep(0.13)  # so that ticks meet every part of the console's own rhythm
    return times


async def shares(place: Services, repository: Repository, *, begin: int) -> tuple[float, float]:
    """The share of a core that api and analytics use while ticks are stored."""
    begun, before = time.perf_counter(), place.cpu_s()
    for number in range(int(WATCHED_S / 2)):
        await tick(repository, begin + number, f"watched {number}")
        await asyncio.sleep(max(0.0, 2 * (number + 1) - (time.perf_counter() - begun)))
    after, took = place.cpu_s(), time.perf_counter() - begun
    return (after[0] - before[0]) / took, (after[1] - before[1]) / took


async def run(place: Services, database: str) -> list[str]:
    """Measure and print; the limits that were missed."""
    engine = create_engine(DatabaseSettings(database_url=SecretStr(database)), application="bench")
    missed: list[str] = []
    try:
        repository = await filled(engine)
        async with signed_in(place) as context:
            await tick(repository, 0, "first", names=TICKERS)
            for path in PAGES:
                took = await usable_s(context, place.address + path)
                print(f"  {path:<16} usable after {took:5.2f} s", flush=True)
                missed += [f"{path} within {MOST_USABLE_S} s"] if took > MOST_USABLE_S else []
            missed += await looked_at(context, place, repository)
    finally:
        await engine.dispose()
    return missed


async def looked_at(context: Any, place: Services, repository: Repository) -> list[str]:
    """A forecast's way to the screen, and what ten consoles add."""
    await asyncio.sleep(8)  # nobody looks any more
    alone = await shares(place, repository, begin=100)
    pages = [await context.new_page() for _ in range(CONSOLES)]
    for page in pages:
        await page.goto(place.address)
        await page.wait_for_function(USABLE, polling="raf")
    watched = await shares(place, repository, begin=1000)
    added = [after - before for after, before in zip(watched, alone, strict=True)]
    print(f"  {CONSOLES} consoles add {added[0]:.1%} of a core to the api and {added[1]:.1%} to the analytics")
    for page in pages[1:]:
        await page.close()
    times = await on_screen_s(pages[0], repository)
    print(f"  a forecast is on the screen {statistics.median(times):.2f} s after its row, at most {max(times):.2f} s")
    missed = [f"{CONSOLES} consoles within {MOST_API_SHARE:.0%} of the api"] if added[0] > MOST_API_SHARE else []
    return missed + ([f"on the screen within {MOST_ON_SCREEN_S} s"] if max(times) > MOST_ON_SCREEN_S else [])


def main() -> int:
    """0 where all limits hold, or where there is no browser; 1 otherwise."""
    print(f"console: {ROWS:,} forecasts, {ROWS:,} calls, a headless Chromium")
    with tempfile.TemporaryDirectory(prefix="lexi-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        server = EmbeddedPostgres(folder / "pg", durable=False)
        server.start()
        try:
            database = migrated(server, "bench")
            with services(folder, database) as place:
                missed = asyncio.run(run(place, database))
        except NotMeasured as error:
            print(f"  not measured: {error}")
            return 0
        finally:
            server.stop()
    for each in missed:
        print(f"  missed: {each}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
