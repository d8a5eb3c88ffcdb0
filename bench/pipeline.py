"""How much of a model's capacity the forecast loop uses: 1,000 tickers, two calls each, numbers and storing included.

The real process (`python -m services.forecast`) reads synthetic bars from a file, judges them against a fake engine
with 64 slots and 250 ms per call, all slots its own, and stores everything in an embedded Postgres. What is printed is
the time the calls would take if every slot were busy all the time, as a share of the time from the first stored
forecast of a tick to its last stored judgement.
"""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import psutil
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from bench.database import migrated
from libs.db.engine import DatabaseSettings, create_engine
from tools.local_stack.postgres import EmbeddedPostgres

TICKERS = 1_000
CALLS = 2
SLOTS = 64
DELAY_S = 0.25
BARS = 300
ROUNDS = 2
INTERVAL_S = 25
TARGET = 0.9
MEMORY_LIMIT_MB = 700
LAST_DAY = datetime(2026, 1, 1, 21, tzinfo=UTC)
UPSTREAMS = f"""
upstreams:
  - name: lexi
    dialect: vllm
    slots: {SLOTS}
    shares: {{forecast: {SLOTS}}}
"""


BEGIN = text("insert into feeds (feed, source, last_as_of) values (:feed, :feed, :as_of)")
PROGRESS = text(
    """
    select count(*) as stored, count(judged_at) as judged, extract(epoch from max(judged_at) - min(ts)) as seconds
    from forecasts where as_of = :as_of
    """
)
VALID = text("select count(*) from forecasts where features -> 'llm' -> 'policy' ->> 'status' = 'ok'")


@dataclass(frozen=True, slots=True)
class Round:
    """One tick: seconds from its first stored forecast to its last stored judgement, and the calls it made."""

    seconds: float
    judged: int
    cpu_s: float

    @property
    def share(self) -> float:
        """The share of the slots' capacity that was used."""
        return self.judged * CALLS * DELAY_S / SLOTS / self.seconds


def moment(number: int) -> datetime:
    """The end of a bar."""
    return LAST_DAY - timedelta(days=BARS - 1 - number)


def write_bars(path: Path) -> None:
    """A random walk per ticker as CSV."""
    walk = np.exp(np.cumsum(np.random.default_rng(7).normal(0, 0.02, (TICKERS, BARS)), axis=1)) * 100
    with path.open("w", encoding="utf-8") as lines:
        lines.write("ticker,as_of,open,high,low,close,volume\n")
        for number in range(BARS):
            stamp = moment(number).isoformat()
            for ticker in range(TICKERS):
                close = walk[ticker, number]
                lines.write(
                    f"T{ticker:04d},{stamp},{close:.4f},{close * 1.01:.4f},{close * 0.99:.4f},{close:.4f},1e6\n"
                )


@contextmanager
def fake_engine() -> Generator[str, None, None]:
    """The engine as a process; its address."""
    command = [sys.executable, "-m", "tests.fakes.engine", "--slots", str(SLOTS), "--delay-ms", str(DELAY_S * 1000)]
    command += ["--chunks", "4", "--reply-by-constraint"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process with its children."""
    return [process, *process.children(recursive=True)]


def cpu_of(process: psutil.Process) -> float:
    """CPU seconds of a process and its children so far."""
    times = [member.cpu_times() for member in family(process)]
    return sum(one.user + one.system for one in times)


def memory_of(process: psutil.Process) -> float:
    """Resident memory of a process and its children, MB."""
    return sum(member.memory_info().rss for member in family(process)) / 1e6


async def judged_round(engine: AsyncEngine, process: psutil.Process, as_of: datetime) -> Round:
    """Wait until a tick is judged whole."""
    cpu = cpu_of(process)
    while True:
        async with engine.connect() as connection:
            row = (await connection.execute(PROGRESS, {"as_of": as_of})).one()
        if row.stored == 0:
            cpu = cpu_of(process)
        if row.judged == TICKERS:
            return Round(float(row.seconds), row.judged, cpu_of(process) - cpu)
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            raise SystemExit("the forecast process ended early")
        await asyncio.sleep(0.25)


async def watched(engine: AsyncEngine, process: psutil.Process) -> tuple[list[Round], float]:
    """A round per bar, and the most memory seen meanwhile."""
    peak = 0.0

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, memory_of(process))
            await asyncio.sleep(0.5)

    watching = asyncio.create_task(watch())
    rounds = [await judged_round(engine, process, moment(BARS - ROUNDS + number)) for number in range(ROUNDS)]
    watching.cancel()
    async with engine.connect() as connection:
        print(f"  policy answers valid: {await connection.scalar(VALID)} of {TICKERS * ROUNDS}")
    return rounds, peak


async def measure(url: str, environment: dict[str, str]) -> tuple[list[Round], float]:
    """Start the loop so that the rounds are the last bars of the data."""
    engine = create_engine(DatabaseSettings(database_url=SecretStr(url)), application="bench")
    async with engine.begin() as connection:
        await connection.execute(BEGIN, {"feed": "file:bars.csv", "as_of": moment(BARS - ROUNDS - 1)})
    command = [sys.executable, "-m", "services.forecast"]
    child = await asyncio.create_subprocess_exec(*command, env=os.environ | environment)
    try:
        return await watched(engine, psutil.Process(child.pid))
    finally:
        child.terminate()
        await child.wait()
        await engine.dispose()


def main() -> int:
    """Run on a Postgres of its own; 1 where a target is missed."""
    with tempfile.TemporaryDirectory(prefix="lexi-bench-") as folder, fake_engine() as base_url:
        home = Path(folder)
        home.chmod(0o755)
        write_bars(home / "bars.csv")
        (home / "upstreams.yaml").write_text(UPSTREAMS, encoding="utf-8")
        server = EmbeddedPostgres(home / "postgres", report=lambda _: None)
        server.start()
        try:
            url = migrated(server, "pipeline")
            environment = {
                "DATABASE_URL": url,
                "LOCAL_STATE": folder,
                "LLM_BASE_URL": base_url,
                "UPSTREAMS_FILE": str(home / "upstreams.yaml"),
                "FORECAST_FEED": f"file:{home / 'bars.csv'}",
                "FORECAST_INTERVAL_S": str(INTERVAL_S),
                "FORECAST_METRICS_PORT": str(free_port()),
            }
            begun = time.monotonic()
            rounds, peak = asyncio.run(measure(url, environment))
            print(f"  whole run {time.monotonic() - begun:.0f} s")
        finally:
            server.stop()
    for number, one in enumerate(rounds, start=1):
        print(
            f"  round {number}: {one.judged * CALLS:,} calls in {one.seconds:.2f} s: {one.share:.1%} of {SLOTS} slots, "
            f"{one.cpu_s / one.judged * 1000:.2f} ms CPU per forecast with its judgement"
        )
    print(f"  forecast process and its worker: at most {peak:.0f} MB")
    return 0 if max(one.share for one in rounds) >= TARGET and peak < MEMORY_LIMIT_MB else 1


if __name__ == "__main__":
    sys.exit(main())
