"""What all open consoles show of this moment, looked up once for everybody.

Ten people who look cost as much as one: a single task reads Postgres and asks the api while at least one page is open,
and every page shows what it last found, with the moment since when it has been so.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from services.analytics.console.house import House
from services.analytics.console.pages.now.queries import Moment, State, read_moment

LOOK_S = 0.5
AWAY_S = 5.0
"""How long after the last page asked the looking stops."""
ASK_API_EVERY_S = 5.0
UNSEEN = timedelta(seconds=20)
"""A line that nobody looked at for longer may have changed at any moment between."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Line:
    """One thing the desk depends on: how it is, in words, and since when.

    `since` is when it changed where Postgres says so or somebody watched it change, and else when it was first seen so:
    then `seen` says from what look on.
    """

    name: str
    state: State
    words: str
    since: datetime
    seen: str = ""

    @property
    def when(self) -> str:
        """Since when it has been so, as far as anybody knows."""
        at = f"{self.since:%H:%M:%S} UTC"
        if self.since.date() != datetime.now(UTC).date():
            at = f"{self.since:%Y-%m-%d} {at}"
        return f"seen since {at}, {self.seen}" if self.seen else f"since {at}"


@dataclass(slots=True)
class Picture:
    """The last that was found. `moment` is what Postgres said, None until it first answered."""

    lines: dict[str, Line] = field(default_factory=dict[str, Line])
    moment: Moment | None = None
    at: datetime | None = None


class Live:
    """Looks while somebody watches. Pages call `watch` with every refresh, and read `picture`."""

    def __init__(self, engine: AsyncEngine, house: House, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.picture = Picture()
        self._engine = engine
        self._house = house
        self._clock = clock
        self._watched_at = -AWAY_S
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._said_at: dict[str, datetime] = {}

    async def start(self) -> None:
        """Begin; nothing is read until somebody watches."""
        self._task = asyncio.create_task(self._run(), name="console-live")

    async def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def watch(self) -> Picture:
        """What was last found; says that somebody looks."""
        self._watched_at = self._clock()
        self._wake.set()
        return self.picture

    async def _run(self) -> None:
        """Each look comes round by itself, so that one which hangs holds up no other."""
        async with asyncio.TaskGroup() as looks:
            looks.create_task(self._come_round("database", self._read_database, every_s=LOOK_S))
            looks.create_task(self._come_round("model", self._ask_api, every_s=ASK_API_EVERY_S))

    async def _come_round(self, name: str, look: Callable[[], Awaitable[None]], *, every_s: float) -> None:
        while True:
            if self._clock() - self._watched_at > AWAY_S:
                self._wake.clear()
                await self._wake.wait()
            begun = self._clock()
            await self._bounded(name, look)
            self.picture.at = datetime.now(UTC)
            await asyncio.sleep(max(0.05, every_s - (self._clock() - begun)))

    async def _bounded(self, name: str, look: Callable[[], Awaitable[None]]) -> None:
        """One look, whose failure is a line like any other."""
        try:
            await look()
        except Exception as error:  # noqa: BLE001 - whatever it is becomes what the line says
            self.say(name, "bad", f"{type(error).__name__}: {error}".splitlines()[0][:200])

    async def _read_database(self) -> None:
        async with asyncio.timeout(LOOK_S * 6), self._engine.connect() as connection:
            moment = await read_moment(connection)
        self.picture.moment = moment
        self.say("database", "good", "answers")
        since = moment.since()
        for name, (state, words) in moment.lines().items():
            self.say(name, state, words, since=since.get(name))

    async def _ask_api(self) -> None:
        told = await self._house.get("/llm/health", limit_s=ASK_API_EVERY_S)
        self.say("api", "good" if told.good else "bad", "answers" if told.good else told.problem)
        if not told.good:
            self.say("model", "unknown", "only the api can ask it, and the api does not answer")
            return
        state: State = "good" if told.content["ok"] else "bad"
        slow = f"{told.content['model']}, {told.content['latency_ms']:.0f} ms"
        self.say("model", state, f"answers ({slow})" if told.content["ok"] else f"gives no sound answer ({slow})")

    def heard(self) -> None:
        """The api answered somebody just now, so a line that calls it away is out of date."""
        if self.picture.lines.get("api", Line("", "good", "", datetime.now(UTC))).state == "bad":
            self.say("api", "good", "answers")

    def say(self, name: str, state: State, words: str, *, since: datetime | None = None) -> None:
        """Set a line; it keeps its moment while its state stays, unless `since` is known from elsewhere."""
        now, before = datetime.now(UTC), self.picture.lines.get(name)
        last = self._said_at.get(name)
        self._said_at[name] = now
        if since is not None:
            line = Line(name, state, words, since)
        elif before is not None and before.state == state:
            line = Line(name, state, words, before.since, before.seen)
        else:
            line = Line(name, state, words, now, _from_what_look(now, last))
        self.picture.lines[name] = line


def _from_what_look(now: datetime, last: datetime | None) -> str:
    """Why a moment is only when something was seen; empty where somebody watched it change."""
    if last is None:
        return "when this console first looked"
    return f"nobody looked after {last:%H:%M:%S} UTC" if now - last > UNSEEN else ""
