"""A gateway as a process, with a place behind it for everything that a client may meet.

Each place is a fake engine of its own that always does the same, and each has its own model name and breaker, so no
test disturbs another: `Lexi` is well, `desk/tiny-1` is too and has a slash in its name, `cut` breaks off, and so on.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml

from libs.keys import ALL_SCOPES, Key, KeyLimits, Scope, digest
from tests.fakes.engine import FakeEngine, Fault

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
WELL, SLASHED, AWAY = "Lexi", "desk/tiny-1", "away"
START_S = 60.0
ENTIRE: frozenset[Scope] = frozenset(ALL_SCOPES)
KEYS = {
    "full": Key(name="full", sha256=digest("full"), scopes=ENTIRE, limits=KeyLimits(choices=2)),
    "reader": Key(name="reader", sha256=digest("reader"), scopes=frozenset({"read"})),
    "narrow": Key(name="narrow", sha256=digest("narrow"), scopes=ENTIRE, models=(SLASHED,)),
    "hasty": Key(name="hasty", sha256=digest("hasty"), scopes=ENTIRE, limits=KeyLimits(requests_per_minute=1)),
    "fuzzer": Key(name="fuzzer", sha256=digest("fuzzer"), scopes=ENTIRE, models=(WELL,), cache="on"),
}
"""By name, which is the plain key too. One may ask for two choices, one may not infer, one has one model, and so on."""


class EngineRoom:
    """Fake engines on an event loop in a thread, so that clients that block do not block them."""

    def __init__(self) -> None:
        self.engines: dict[str, FakeEngine] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something on the engines' loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_S)

    @contextmanager
    def open(self, engines: Mapping[str, FakeEngine]) -> Generator[None, None, None]:
        """Start the engines, stop them after the block."""
        self._thread.start()
        self.engines.update(engines)
        try:
            for engine in engines.values():
                self.run(engine.start())
            yield
        finally:
            for engine in engines.values():
                self.run(engine.stop())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(START_S)
            self._loop.close()


@dataclass(frozen=True, slots=True)
class House:
    """A running gateway: `url` ends in `/v1`; `engines` by model."""

    url: str
    engines: Mapping[str, FakeEngine]

    def sent(self, model: str = WELL) -> dict[str, Any]:
        """The body that a model's engine got last."""
        return self.engines[model].requests[-1]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


def entry(name: str, model: str, base_url: str) -> dict[str, Any]:
    """One place as the list of upstreams has it."""
    return {"name": name, "model": model, "base_url": base_url, "slots": 8, "shares": {"api": 8}}


@contextmanager
def gateway(
    folder: Path, database_url: str, *, lexi_url: str, more: list[dict[str, Any]], **settings: str
) -> Generator[str, None, None]:
    """`python -m services.api` in front of Lexi and the places of `more`; gives the base address of its API."""
    port = free_port()
    keys = [json.loads(key.model_dump_json()) for key in KEYS.values()]
    (folder / "keys.json").write_text(json.dumps(keys), encoding="utf-8")
    lexi = {"name": "lexi", "dialect": "auto", "slots": 8, "shares": {"api": 8}}
    (folder / "upstreams.yaml").write_text(yaml.safe_dump({"upstreams": [lexi, *more]}), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "services.api"],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "DATABASE_URL": database_url,
            "LLM_BASE_URL": lexi_url,
            "LOCAL_STATE": str(folder),
            "UPSTREAMS_FILE": str(folder / "upstreams.yaml"),
            "API_PORT": str(port),
            **settings,
        },
        stderr=(folder / "api.log").open("w", encoding="utf-8"),
    )
    try:
        wait_until_green(process, f"http://127.0.0.1:{port}/ready", folder / "api.log")
        yield f"http://127.0.0.1:{port}/v1"
        assert process.poll() is None, f"the gateway died:\n{(folder / 'api.log').read_text(encoding='utf-8')}"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=START_S) == 0, (folder / "api.log").read_text(encoding="utf-8")


def wait_until_green(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    """Wait until Lexi was seen well."""
    deadline, said = time.monotonic() + START_S, "nothing"
    while process.poll() is None and time.monotonic() < deadline:
        try:
            said = httpx.get(url).text
        except httpx.TransportError:
            said = "nothing"
        if any(line.split() == ["green", "lexi"] for line in said.splitlines()):
            return
        time.sleep(0.05)
    raise AssertionError(f"/ready says {said!r}\n{log.read_text(encoding='utf-8')}")


def sick_engines() -> dict[str, FakeEngine]:
    """One engine for each way to go wrong."""
    faults = {"cut": Fault.CUT, "stalling": Fault.STALL, "endless": Fault.NO_FINISH, "garbled": Fault.MALFORMED}
    # Slow enough that what was said before the break is on its way to the client when the break comes.
    engines = {
        model: FakeEngine(model=model, reply="one two three four", gap_s=0.15) for model in (*faults, "busy", "failing")
    }
    for model, fault in faults.items():
        engines[model].fault = fault
    for model, status in (("busy", 429), ("failing", 500)):
        engines[model].fault, engines[model].fault_status = Fault.STATUS, status
    engines["busy"].retry_after = "1"
    engines["slow"] = FakeEngine(model="slow", delay_s=30)
    return engines


@contextmanager
def house(folder: Path, database_url: str, well: Mapping[str, FakeEngine]) -> Generator[House, None, None]:
    """A gateway over the engines of `well`, and over the sick ones."""
    room = EngineRoom()
    with room.open({**well, **sick_engines()}):
        places = [
            entry(f"place-{number}", model, engine.base_url)
            for number, (model, engine) in enumerate(room.engines.items())
            if model != WELL
        ]
        places.append(entry(AWAY, AWAY, "http://127.0.0.1:9/v1"))
        with gateway(
            folder,
            database_url,
            lexi_url=room.engines[WELL].base_url,
            more=places,
            API_IDLE_TIMEOUT_S="1",
            API_MAX_PROMPT_BYTES="262144",
            API_FIRST_BYTE_TIMEOUT_S="60",
        ) as url:
            yield House(url=url, engines=room.engines)
