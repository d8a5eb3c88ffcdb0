"""The sidecar as a process of its own, before fake engines, for tests that see it from outside only."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.faults.gateway_process import ROOT, eventually
from tests.integration.sidecar_app import NOWHERE, write_upstreams

PATIENCE_S = 60.0


class Sidecar:
    """One `python -m services.sidecar`; `settings` are environment variables."""

    def __init__(self, folder: Path, *entries: Mapping[str, Any], **settings: str) -> None:
        self.folder = folder
        self.settings = settings
        self.http = httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False)
        self.process: asyncio.subprocess.Process | None = None
        self.port = 0
        write_upstreams(folder / "upstreams.yaml", *entries)

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it and wait until it answers."""
        with socket.create_server(("127.0.0.1", 0)) as held:
            self.port = held.getsockname()[1]
        known = {
            "LLM_BASE_URL": NOWHERE,
            "LOCAL_STATE": str(self.folder),
            "UPSTREAMS_FILE": str(self.folder / "upstreams.yaml"),
            "SIDECAR_PORT": str(self.port),
        }
        with (self.folder / "sidecar.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "services.sidecar",
                cwd=ROOT,
                env={**os.environ, **known, **self.settings},
                stdout=log,
                stderr=log,
            )
        await eventually(self._answers, what="the sidecar answers", within_s=PATIENCE_S)

    async def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.returncode is None, self.log()
        with contextlib.suppress(httpx.TransportError):
            return bool((await self.http.get(f"{self.url}/ready")).text)
        return False

    def log(self) -> str:
        """What it wrote so far."""
        return (self.folder / "sidecar.log").read_text(encoding="utf-8")

    async def ask(self, path: str, prompt: str = "Well?", **body: Any) -> Any:
        """The JSON of an answer with status 200."""
        answer = await self.http.post(f"{self.url}{path}", json={"prompt": prompt, **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        lines = (await self.http.get(f"{self.url}/metrics")).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    async def stop(self) -> int:
        """SIGTERM; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()

    async def close(self) -> None:
        """End it in any case."""
        await self.http.aclose()
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


@asynccontextmanager
async def sidecar_before(folder: Path, *entries: Mapping[str, Any], **settings: str) -> AsyncGenerator[Sidecar, None]:
    """A sidecar that runs inside the block."""
    process = Sidecar(folder, *entries, **settings)
    try:
        await process.start()
        yield process
    finally:
        await process.close()
