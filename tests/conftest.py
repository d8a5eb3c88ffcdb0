"""Fixtures every tier may use: a real Postgres, and in it an empty migrated database for each test."""

import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import hypothesis
import pytest
import uvloop
from _pytest.nodeid import NodeId
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.db.engine import DatabaseSettings, create_engine
from tools.local_stack.postgres import EmbeddedPostgres

# `make proof` sets HYPOTHESIS_PROFILE=proof: the same properties, many more examples.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("proof", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

ROOT = Path(__file__).parents[1]
TEMPLATE = "template_lexi"
SETTINGS = (
    "ALERT_", "ALPACA_", "ANALYTICS_", "API_", "BROKER", "DATABASE_", "ENABLE_PANIC", "FORECAST_", "GATE_", "JOBS_",
    "HERMES_", "LEXI_", "LLM_", "LOCAL_STATE", "MAKE", "MAX_", "MICRO_LLM_", "MFLAGS", "ORDER_GATE_",
    "OTEL_", "PANIC_", "PAPER_", "PRICE_COLLAR", "RESTRICTED_", "SIDECAR_", "WATCHDOG_",
)  # fmt: skip
_database_numbers = count()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep each `xdist_group` on one worker: pytest-xdist 3.8 notes it where pytest 9.2 does not look any more."""
    if not config.getoption("loadgroup", default=False):
        return
    for item in items:
        groups = sorted({str(mark.args[0]) for mark in item.iter_markers("xdist_group")})
        suffix = f"@{'_'.join(groups)}"
        if groups and not item.nodeid.endswith(suffix):
            item._id = NodeId.parse(item.nodeid + suffix)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the settings of the shell it was started from, nor that `make` started it."""
    for name in list(os.environ):
        if name.startswith(SETTINGS):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def event_loop_policy() -> uvloop.EventLoopPolicy:
    """Tests run on the loop that production runs on."""
    return uvloop.EventLoopPolicy()


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """One embedded server per test process, with a migrated database to copy from.

    Not under pytest's own temporary folder: each pytest that starts as root closes that one to the server's user again.
    """
    with tempfile.TemporaryDirectory(prefix="lexi-test-", ignore_cleanup_errors=True) as folder:
        server = EmbeddedPostgres(Path(folder) / "pg", durable=False)
        server.start()
        try:
            server.ensure_database(TEMPLATE)
            migrate(server.url(TEMPLATE))
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="module")
def state_folder() -> Iterator[Path]:
    """A folder for the state of a whole stack, which the embedded server's user can reach."""
    with tempfile.TemporaryDirectory(prefix="lexi-stack-", ignore_cleanup_errors=True) as folder:
        yield Path(folder) / "state"


def migrate(url: str) -> None:
    """Run the migrations as a deployment does: in a process of its own."""
    subprocess.run(
        [sys.executable, "-m", "libs.db", "migrate"], check=True, cwd=ROOT, env=os.environ | {"DATABASE_URL": url}
    )


@pytest.fixture
async def database_url(postgres: EmbeddedPostgres) -> AsyncIterator[str]:
    """The address of a new migrated database, dropped afterwards."""
    name = f"t{next(_database_numbers)}"
    postgres.ensure_database(name, template=TEMPLATE)
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on a new migrated database."""
    made = create_engine(DatabaseSettings(database_url=SecretStr(database_url)), application="test")
    yield made
    await made.dispose()
