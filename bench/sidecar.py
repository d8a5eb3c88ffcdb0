"""What the sidecar adds to an answer of its upstream: latency at the median, and CPU of its process.

The engine is a fake in a process of its own that takes 20 ms an answer. It is asked directly and through the sidecar in
turns, one request at a time on connections that stay open, so that whatever disturbs the machine disturbs both. The
sidecar runs as it is deployed, with its record in a Postgres of the bench's own.
"""

import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from bench.database import migrated
from tools.local_stack.postgres import EmbeddedPostgres

ROUNDS = 5
REQUESTS = 150
WARM_UP = 50
GOAL_MS = 5.0
PATIENCE_S = 60.0
UPSTREAMS = """
upstreams:
  - {name: lexi, dialect: vllm, slots: 64, shares: {sidecar: 64}}
"""
OBJECT = json.dumps({"ticker": "AAPL", "action": "adjust", "confidence": 0.7, "rationale": "The price has run ahead."})
PROMPT = "AAPL is up 4% since the entry. Adjust the stop? " * 10


@contextmanager
def engine() -> Generator[str]:
    """The fake engine: its base address."""
    command = [sys.executable, "-m", "tests.fakes.engine", "--slots", "64", "--delay-ms", "20", "--chunks", "16"]
    with subprocess.Popen([*command, "--reply", OBJECT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@contextmanager
def sidecar(folder: Path, database_url: str, model_url: str) -> Generator[tuple[int, psutil.Process]]:
    """The sidecar on a free port: the port and its process."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    (folder / "upstreams.yaml").write_text(UPSTREAMS, encoding="utf-8")
    environment = os.environ | {
        "DATABASE_URL": database_url,
        "LLM_BASE_URL": model_url,
        "LOCAL_STATE": str(folder),
        "UPSTREAMS_FILE": str(folder / "upstreams.yaml"),
        "SIDECAR_PORT": str(port),
    }
    with (folder / "sidecar.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "services.sidecar"], env=environment, stdout=log, stderr=log)
    try:
        wait_until_ready(port, process)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def wait_until_ready(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Return when it answers; an error when it ended or took too long."""
    ends = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < ends:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the sidecar did not start")


def asker(port: int, path: str, body: dict[str, Any], good: Callable[[dict[str, Any]], bool]) -> Callable[[], float]:
    """Asks once on a connection of its own and returns the milliseconds it took; a bad answer ends the bench."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    content = json.dumps(body)

    def ask() -> float:
        begun = time.perf_counter()
        connection.request("POST", path, content, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        took = (time.perf_counter() - begun) * 1000
        assert answer.status == 200, text
        assert good(json.loads(text)), text
        return took

    return ask


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds of a process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def compare(path: str, *, sidecar_port: int, engine_port: int, process: psutil.Process) -> float:
    """Print what one route adds at p50; the milliseconds of the quietest round, since a disturbance only ever adds."""
    direct_body = {"model": "Lexi", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 256}
    direct = asker(engine_port, "/v1/chat/completions", direct_body, lambda said: bool(said["choices"]))
    through = asker(sidecar_port, path, {"prompt": PROMPT}, lambda said: "error" not in said)
    for _ in range(WARM_UP):
        direct()
        through()
    added: list[float] = []
    spent, asked = cpu_s(process), 0
    for _ in range(ROUNDS):
        pairs = [(direct(), through()) for _ in range(REQUESTS)]
        asked += REQUESTS
        alone, ours = (statistics.median(each) for each in zip(*pairs, strict=True))
        added.append(ours - alone)
    cpu_ms = (cpu_s(process) - spent) * 1000 / asked
    quietest = min(added)
    print(
        f"sidecar  {path:18s} adds {quietest:.1f} ms at p50 (goal {GOAL_MS:g}; rounds up to {max(added):.1f}), "
        f"{cpu_ms:.1f} ms of CPU a request",
        flush=True,
    )
    return quietest


def main() -> int:
    """Measure both models' routes; 1 where the goal is missed."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        server = EmbeddedPostgres(folder / "pg", durable=False)
        server.start()
        try:
            url = migrated(server, "bench")
            with engine() as model_url, sidecar(folder, url, model_url) as (port, process):
                engine_port = urlsplit(model_url).port
                assert engine_port is not None
                worst = max(
                    compare(path, sidecar_port=port, engine_port=engine_port, process=process)
                    for path in ("/generate/hermes/", "/generate/phi3/")
                )
                print(f"sidecar  memory {process.memory_info().rss / 2**20:.0f} MB")
        finally:
            server.stop()
    return 1 if worst > GOAL_MS else 0


if __name__ == "__main__":
    sys.exit(main())
