"""The paper broker as a process: its file, its prices, its port."""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from uuid import uuid4

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.db.engine import INTERACTIVE_S, DatabaseSettings, create_engine
from libs.http_app import Edge
from libs.probes import Check
from libs.process import serve
from libs.service_settings import ListenSettings
from libs.settings import load
from services.paper.app import Desk, PaperKeys, create_app
from services.paper.cuts import Sockets
from services.paper.exchange import Exchange, Manners, new_account
from services.paper.hours import open_hours
from services.paper.marks import Marks
from services.paper.settings import MarksSettings, PaperSettings
from services.paper.store import FileStore

FILE = "paper.sqlite"
TICK_S = 0.05
MAX_BODY_BYTES = 1_048_576

log = structlog.get_logger(__name__)


class PaperConfigError(Exception):
    """The broker would be open to the network; the message names the settings."""


def is_loopback(host: str) -> bool:
    """Whether an address to listen on reaches no other machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def keys_of(settings: PaperSettings, host: str) -> PaperKeys | None:
    """The key, None without one. Raises `PaperConfigError` where nobody would ask for one on an open address."""
    if settings.paper_key_id is not None and settings.paper_secret_key is not None:
        return PaperKeys(settings.paper_key_id.get_secret_value(), settings.paper_secret_key.get_secret_value())
    if not is_loopback(host):
        raise PaperConfigError(
            f"API_HOST={host} is not loopback: set PAPER_KEY_ID and PAPER_SECRET_KEY, or anybody there may trade"
        )
    return None


@asynccontextmanager
async def open_marks_engine() -> AsyncGenerator[AsyncEngine | None, None]:
    """An engine that nobody waits for, None where no database is named. Raises `SettingsError` for a wrong address."""
    url = load(MarksSettings).database_url
    if url is None:
        yield None
        return
    settings = load(DatabaseSettings, database_url=url)
    engine = create_engine(settings, application="paper", pool_size=1, command_timeout=INTERACTIVE_S)
    try:
        yield engine
    finally:
        await engine.dispose()


class Pulse:
    """Lets time pass while nobody asks, and knows whether the file takes what happens."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._amiss: str | None = None

    async def check(self) -> str | None:
        """A line of `/ready`: red while the file cannot be written."""
        return self._amiss

    async def run(self, stop: asyncio.Event) -> None:
        """Beat until told to stop."""
        while not stop.is_set():
            self.beat()
            await asyncio.sleep(TICK_S)

    def beat(self) -> None:
        """Let time pass once. What the file does not take is stored with what comes next."""
        try:
            self._desk.settle()
        except sqlite3.Error as error:
            if self._amiss is None:
                log.exception("not_stored")
            self._amiss = f"cannot write {FILE}: {error}"
        else:
            self._amiss = None


def open_exchange(store: FileStore, settings: PaperSettings) -> Exchange:
    """The exchange as its file kept it."""
    manners = Manners(fill_ms=settings.paper_fill_ms, slices=settings.paper_slices)
    return Exchange(store.kept, manners=manners, hours=open_hours(settings.paper_calendar))


def open_store(state: Path, settings: PaperSettings) -> FileStore:
    """The file in that folder, with a new account where there is none. Raises `StoreError`."""
    return FileStore(state / FILE, lambda: new_account(str(uuid4()), settings.paper_cash, datetime.now(UTC)))


async def main(stop: asyncio.Event) -> None:
    """Serve until told to stop."""
    listen, settings = load(ListenSettings), load(PaperSettings)
    keys = keys_of(settings, listen.api_host)
    store = open_store(listen.local_state, settings)
    try:
        async with open_marks_engine() as engine:
            exchange = open_exchange(store, settings)
            checks: dict[str, Check] = {}
            app = create_app(exchange, store, keys=keys, checks=checks)
            desk: Desk = app.state.desk
            marks, pulse = Marks(desk, engine), Pulse(desk)
            checks |= {"file": pulse.check, "marks": marks.check}
            await marks.first()
            edge = Sockets(Edge(app, max_body_bytes=MAX_BODY_BYTES))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(pulse.run(stop))
                tasks.create_task(marks.run(stop))
                tasks.create_task(
                    serve(edge, host=listen.api_host, port=settings.paper_port, stop=stop, variable="PAPER_PORT")
                )
    finally:
        store.close()
