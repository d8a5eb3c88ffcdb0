"""The processes of the house, each of which may die: the api with its desk, the jobs, and panic exits."""

import asyncio
from collections.abc import Coroutine
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.db.engine import DatabaseSettings, create_engine
from libs.keys import Key
from libs.problems import Problem
from libs.trading.broker.address import BrokerAddress
from libs.trading.broker.client import Broker
from libs.trading.halt import EntryLock, HaltFile
from libs.trading.halts import Position, copy_local
from libs.trading.journal import Entry, Journal
from libs.trading.limits import Limits, Terms
from libs.trading.panic.exit import PanicExit
from libs.trading.panic.ground import Patience
from libs.trading.panic.record import Request
from libs.trading.panic.report import JOURNAL_NAME
from services.api.deps import ApiState
from services.api.strategist.desk.desk import Desk, GateTerms
from services.api.strategist.entries import OrderBody, gate, orders
from services.api.strategist.exits.copier import copy_exits
from services.api.strategist.exits.elsewhere import Recorded
from services.api.strategist.exits.exits import Exits
from services.api.strategist.state import Strategist, learn_account
from services.api.strategist.submission import Submission
from services.jobs.reconcile.reconciler import Reconciler
from services.paper.memory import PaperTransport
from tests.simulation.clock import VirtualClock
from tests.simulation.market import MODEL
from tests.simulation.virtual_loop import PROCESS, VirtualLoop
from tests.simulation.wire import Died, Line, Wires

ADDRESS = BrokerAddress(name="paper", base_url="http://paper.invalid")
KEY = Key(name="desk", sha256="0" * 64, scopes=frozenset({"trade"}))
LIMITS = Limits()
PATIENCE = Patience()


@dataclass(frozen=True, slots=True)
class Answered:
    """What a caller of the api got: a status and a body; 0 where the api died instead."""

    status: int
    body: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def denied(self) -> bool:
        """Whether the verdict was deny."""
        return self.body.get("verdict") == "deny"

    @property
    def reasons(self) -> list[str]:
        """The verdict's reasons."""
        return self.body.get("reasons", [])


class Api:
    """One life of the api process."""

    def __init__(self, url: str, *, state: Path, line: Line, clock: VirtualClock) -> None:
        self.engine = create_engine(DatabaseSettings(database_url=SecretStr(url)), application="api")
        broker = Broker(ADDRESS, transport=line)
        desk = Desk(url, rests_on=GateTerms(LIMITS, Terms(MODEL)), state=state, timeout_s=2)
        submission = Submission(broker, lock=EntryLock(state), engine=self.engine)
        exits = Exits(broker, state=state, elsewhere=Recorded(self.engine), now=clock.now)
        no_panic: Any = None  # panic exits are processes of their own here
        self.strategist = Strategist(broker, desk, submission, exits, no_panic)

    async def start(self) -> None:
        """Begin to serve."""
        await self._spawn(self._begin())
        self._spawn(copy_exits(self.strategist.exits, self.strategist.desk))
        self._spawn(learn_account(self.strategist.broker, self.strategist.desk))

    async def _begin(self) -> None:
        await self.strategist.exits.load()
        self.strategist.desk.start()

    async def post(self, body: dict[str, Any], *, send: bool = True) -> Answered:
        """`POST /strategist/orders`, or `/gate`. Raises `Died` where the process does."""
        asked, state = OrderBody.model_validate(body), cast("ApiState", SimpleNamespace(engine=self.engine))
        call = orders(self.strategist, state, asked, KEY) if send else gate(self.strategist, asked, KEY)
        try:
            answer = await self._spawn(call)
        except Problem as problem:
            return Answered(problem.status, dict(problem.extra))
        return Answered(200, answer.model_dump(mode="json"))

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        context = copy_context()
        context.run(PROCESS.set, self)
        return asyncio.create_task(work, context=context)

    async def die(self) -> None:
        """End at once; what the kernel closes is closed."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        doomed = loop.tasks_of(self)
        for task in doomed:
            task.cancel()
        await asyncio.gather(*doomed, return_exceptions=True)
        await self.strategist.desk.close()
        await self.strategist.broker.aclose()
        await self.engine.dispose()


@dataclass(slots=True)
class Death:
    """Where a process dies in its journal: before the `nth` entry is written, after it, or in the middle of it."""

    nth: int
    how: str


class MortalJournal(Journal):
    """A journal whose writer may die writing."""

    def __init__(self, path: Path, *, clock: VirtualClock, death: Death | None) -> None:
        super().__init__(path, now=clock.now)
        self._death = death
        self.written = 0

    def append(self, subject: UUID, action: str, result: Any) -> Entry:
        """Write an entry, or die."""
        self.written += 1
        death = self._death if self._death is not None and self.written == self._death.nth else None
        if death is not None and death.how == "before":
            raise Died
        entry = super().append(subject, action, result)
        if death is None:
            return entry
        if death.how == "torn":
            whole = self.path.read_bytes()
            last = whole[:-1].rfind(b"\n") + 1
            self.path.write_bytes(whole[: last + (len(whole) - last) // 2])
        raise Died


class House:
    """All processes over one folder, one database and one broker."""

    def __init__(self, url: str, *, state: Path, wires: Wires, paper: PaperTransport, clock: VirtualClock) -> None:
        self.state = state
        self.wires = wires
        self.clock = clock
        self.halt_file = HaltFile(state)
        self.engine: AsyncEngine = create_engine(DatabaseSettings(database_url=SecretStr(url)), application="jobs")
        self.jobs_broker = Broker(ADDRESS, transport=Line("jobs", wires, paper))
        self._reconciler = Reconciler(self.engine, self.jobs_broker, every_s=0)
        self._url, self._paper = url, paper
        self._copied = Position()
        self.api = self._new_api()
        self.lives = 1

    def _new_api(self) -> Api:
        return Api(self._url, state=self.state, line=Line("api", self.wires, self._paper), clock=self.clock)

    async def start(self) -> None:
        """Start the api."""
        await self.api.start()

    async def post(self, body: dict[str, Any], *, send: bool = True) -> Answered:
        """An order to the api; where the process dies of it, it is started again."""
        api = self.api
        try:
            return await api.post(body, send=send)
        except (Died, asyncio.CancelledError):
            if api is self.api:
                await self.restart_api()
            return Answered(0)

    async def restart_api(self) -> None:
        """Kill the api and start it again."""
        dead, self.api = self.api, self._new_api()
        self.lives += 1
        await dead.die()
        await self.api.start()

    async def reconcile(self) -> None:
        """One round of the jobs: the account, and what this disk says about halts."""
        await self._reconciler.step()
        await self.copy()

    async def copy(self) -> None:
        """Copy halt and panic journal into Postgres."""
        await copy_local(self.engine, self.state, self._copied)

    def journal(self, death: Death | None = None) -> MortalJournal:
        """The journal of panic exits."""
        return MortalJournal(self.state / JOURNAL_NAME, clock=self.clock, death=death)

    async def panic(self, exit_id: UUID, *, ttl_minutes: int = 0, death: Death | None = None) -> dict[str, Any] | None:
        """A panic exit in a process of its own; None where that died."""
        async with Broker(ADDRESS, transport=Line("panic", self.wires, self._paper)) as broker:
            process = PanicExit(
                Request(exit_id, "simulated", ttl_minutes),
                broker=broker,
                clock=self.clock,
                journal=self.journal(death),
                halt_file=self.halt_file,
                entry_lock=EntryLock(self.state),
                patience=PATIENCE,
            )
            try:
                return await process.run()
            except BaseExceptionGroup as group:
                if group.split(Died)[1] is not None:
                    raise
                return None
            except Died:
                return None

    async def close(self) -> None:
        """End everything."""
        await self.api.die()
        await self.jobs_broker.aclose()
        await self.engine.dispose()
