"""A real process of the jobs, for tests that end it."""

import asyncio
import os
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.conftest import ROOT
from tests.integration.replay_batch_cases import write_upstreams


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


@asynccontextmanager
async def jobs(
    database_url: str, base_url: str, folder: Path, *, share: int, prefix: Sequence[str] = (), **more: str
) -> AsyncGenerator[Process]:
    """The process, without a broker, with so many slots of the model. `prefix` is the command that starts it."""
    own = {
        "DATABASE_URL": database_url,
        "LOCAL_STATE": str(folder / "state"),
        "LLM_BASE_URL": base_url,
        "LLM_CONNECT_TIMEOUT_S": "1",
        "UPSTREAMS_FILE": str(write_upstreams(folder, share=share)),
        "JOBS_METRICS_PORT": str(free_port()),
        "PAPER_PORT": str(free_port()),
    }
    process = await asyncio.create_subprocess_exec(
        *prefix, sys.executable, "-m", "services.jobs", cwd=ROOT, env=os.environ | own | more, stdout=PIPE, stderr=PIPE
    )
    drained = asyncio.create_task(process.communicate())
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await drained
