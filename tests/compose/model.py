"""The model server on the host, as containers find it: a fake engine in a thread, on the Docker bridge too."""

import asyncio
import subprocess
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tests.acceptance.stack import free_ports
from tests.fakes.engine import FakeEngine, Fault
from tests.fakes.engine_replies import Reply, ReplySource, by_constraint

LOOPBACK = "127.0.0.1"
T = TypeVar("T")


def bridge_address() -> str:
    """What `host.docker.internal:host-gateway` is inside containers: this machine on Docker's default bridge."""
    asked = ["docker", "network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    return done.stdout.strip()


class _Engine(FakeEngine):
    """The fake engine on several addresses."""

    hosts: tuple[str, ...] = (LOOPBACK,)

    async def start(self, port: int | None = None) -> None:
        """Listen on all of them."""
        loop = asyncio.get_running_loop()
        wanted = self.port if port is None else port
        self._server = await loop.create_server(self._connection, self.hosts, wanted, backlog=1024)
        self.port = wanted


class HostModel:
    """The engine and what a person does to it. Set `engine.reply`, `engine.fault` and so on at any time."""

    def __init__(self, *, hosts: tuple[str, ...], api_key: str | None) -> None:
        self.engine = _Engine(dialect="vllm", slots=64, api_key=api_key, delay_s=0.02)
        self.hosts = hosts
        self.port = int(free_ports(("model",))["model"])
        self.good: ReplySource = by_constraint("A steady drift on ordinary volume.")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._listens = False

    def start(self, *hosts: str) -> None:
        """Listen, on these addresses instead of its own where any are named."""
        self.engine.hosts = hosts or self.hosts
        self._do(lambda: self.engine.start(self.port))
        self._listens = True

    def stop(self) -> None:
        """Go away as a killed process does."""
        if self._listens:
            self._do(self.engine.stop)
            self._listens = False

    def mend(self) -> None:
        """Whatever was done to it, be well again."""
        self.engine.fault, self.engine.model, self.engine.fault_body = Fault.NONE, "Lexi", None
        self.engine.reply = self.good
        self.stop()
        self.start()

    def deny_everything(self) -> None:
        """Answer every question for a policy with a denial; all else as always."""
        good = self.good
        assert callable(good)

        def answer(body: dict[str, Any]) -> str | Reply:
            schema = str(body.get("structured_outputs") or body.get("response_format") or "")
            return '{"allow": false, "reasons": ["COVERAGE"], "flags": []}' if "allow" in schema else good(body)

        self.engine.reply = answer

    def close(self) -> None:
        """End it and its thread."""
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _do(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return asyncio.run_coroutine_threadsafe(make(), self._loop).result(10)
