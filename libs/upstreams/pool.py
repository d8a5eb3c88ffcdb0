"""All upstreams of one process, kept as the file of upstreams says while the process runs."""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from itertools import count
from time import monotonic
from typing import Any

import structlog

from libs.upstreams.choice import best_first, usable_first
from libs.upstreams.config import LEXI, UpstreamEntry
from libs.upstreams.errors import BreakerOpen, UnknownUpstream
from libs.upstreams.file_watch import FileWatch
from libs.upstreams.settings import UpstreamSettings
from libs.upstreams.types import ChatReply, ChatRequest, Role, TimeLimits, UpstreamStatus
from libs.upstreams.upstream import Upstream

POLL_S = 2.0
"""How often the file is looked at."""
SETTLE_S = 0.2
"""How long a file that changed must stay as it is before it is read."""
DRAINED_S = 0.2
"""How often an upstream that was taken out is looked at for calls still in flight."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Choices:
    """Where requests for one model may go: the entries that have it, and what those fall back on."""

    replicas: tuple[Upstream, ...]
    fallbacks: tuple[Upstream, ...]


class Upstreams:
    """The engines a process may ask, each with this process's share of its slots. Implements `Engine`."""

    def __init__(
        self,
        entries: Mapping[str, UpstreamEntry],
        *,
        role: Role,
        clock: Callable[[], float] = monotonic,
        file: FileWatch | None = None,
    ) -> None:
        self._role: Role = role
        self._clock = clock
        self._file = file
        self._upstreams = {name: Upstream(entry, role, clock) for name, entry in entries.items()}
        self._choices = _choices(self._upstreams)
        self._turns = count()
        self._watchers: dict[Upstream, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    def load(cls, settings: UpstreamSettings, *, role: Role) -> "Upstreams":
        """Read the file of upstreams. Raises `UpstreamConfigError` naming file, entry and field."""
        file = FileWatch(settings)
        return cls(file.load(), role=role, file=file)

    async def start(self) -> None:
        """Look at every upstream once, so that the first call finds its dialect known, and go on looking, at the file
        that lists them too.
        """
        await self._begin(self._upstreams.values())
        if self._file is not None:
            self._spawn(self._follow(self._file), name="upstreams-file")

    async def close(self) -> None:
        """Stop looking and drop all connections; calls in flight end as broken."""
        tasks = [*self._tasks, *self._watchers.values()]
        leaving = [upstream for upstream in self._watchers if upstream not in self._upstreams.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._watchers = {}
        for upstream in (*self._upstreams.values(), *leaving):
            await upstream.close()

    async def chat(self, request: ChatRequest, limits: TimeLimits, *, upstream: str = LEXI) -> ChatReply:
        """Ask one upstream. Raises an `UpstreamError`; cancelling closes the upstream's socket at once."""
        return await self._get(upstream).chat(request, limits)

    def models(self) -> tuple[str, ...]:
        """The models that this role has a share of, in the file's order."""
        return tuple(self._choices)

    def places(self, model: str, *, allowed: Callable[[str], bool]) -> tuple[Upstream, ...]:
        """Where to send a request for a model, best first; empty where there is no such model for this role.

        First the entries that have it, the least loaded first, then those they fall back on whose own model is
        `allowed`, in the file's order. What looks dead comes last: it is asked only when nothing else is left.
        """
        choices = self._choices.get(model)
        if choices is None:
            return ()
        if len(choices.replicas) == 1 and not choices.fallbacks:
            return choices.replicas
        fallbacks = [place for place in choices.fallbacks if allowed(place.entry.model)]
        return best_first(choices.replicas, fallbacks, turn=next(self._turns))

    def model_of(self, upstream: str) -> str:
        """The model name of an upstream entry."""
        return self._get(upstream).entry.model

    def place_of(self, upstream: str) -> str:
        """The address of an upstream entry and the dialect spoken there, as far as it is known yet."""
        return self._get(upstream).place

    def fallbacks_of(self, upstream: str) -> tuple[str, ...]:
        """The entries to try when this one cannot answer, in the file's order, those that look dead last."""
        names = self._get(upstream).entry.fallback
        return usable_first(self._upstreams[name].status() for name in names) if names else ()

    def status(self) -> list[UpstreamStatus]:
        """How each upstream is, in the file's order."""
        return [upstream.status() for upstream in self._upstreams.values()]

    @property
    def trouble(self) -> str | None:
        """Why the file of upstreams on disk is not what runs; None where it is."""
        return None if self._file is None else self._file.trouble

    async def reload(self, entries: Mapping[str, UpstreamEntry]) -> None:
        """Become what a new file says. Calls in flight go on where they are, also at what is not listed any more, and
        so do those in line there, but for requests from outside where another replica stays.

        An entry with the same model at the same address stays the same upstream, with its calls and the breaker's
        memory, whatever else changed about it. A new one is looked at once before requests get to it.
        """
        before, upstreams = self._upstreams, dict[str, Upstream]()
        for name, entry in entries.items():
            known = before.get(name)
            if known is None or not known.is_at(entry):
                known = Upstream(entry, self._role, self._clock)
            upstreams[name] = known
        added = [upstream for name, upstream in upstreams.items() if before.get(name) is not upstream]
        gone = [upstream for name, upstream in before.items() if upstreams.get(name) is not upstream]
        await self._begin(added)
        for name, upstream in upstreams.items():
            upstream.adopt(entries[name])
        self._upstreams, self._choices = upstreams, _choices(upstreams)
        for upstream in gone:
            choices = self._choices.get(upstream.entry.model)
            if choices is not None and any(replica in before.values() for replica in choices.replicas):
                upstream.slots.dismiss(_taken_out, bounded=True)
            self._spawn(self._retire(upstream), name=f"retire-{upstream.entry.name}")
        log.info(
            "upstreams_file_taken",
            upstreams=list(upstreams),
            new=[upstream.entry.name for upstream in added],
            gone=[upstream.entry.name for upstream in gone],
        )

    async def _begin(self, upstreams: Collection[Upstream]) -> None:
        try:
            await asyncio.gather(*(upstream.beat() for upstream in upstreams))
        except BaseException:
            await asyncio.gather(*(upstream.close() for upstream in upstreams))
            raise
        for upstream in upstreams:
            task = asyncio.create_task(upstream.watch(), name=f"heartbeat-{upstream.entry.name}")
            self._watchers[upstream] = task

    async def _follow(self, file: FileWatch) -> None:
        """Look at the file for ever."""
        while True:
            await asyncio.sleep(POLL_S if file.settled else SETTLE_S)
            before = file.trouble
            try:
                entries = await asyncio.to_thread(file.look)
                if entries is not None:
                    await self.reload(entries)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with a file, later ones must still be seen
                file.trouble = f"{type(error).__name__}: {error}"
            if file.trouble is not None and file.trouble != before:
                log.warning("upstreams_file_refused", reason=file.trouble)

    async def _retire(self, upstream: Upstream) -> None:
        """Let an upstream go once its last call has ended."""
        while upstream.slots.used or upstream.slots.waiting:  # noqa: ASYNC110 - nobody waits for this moment
            await asyncio.sleep(DRAINED_S)
        watcher = self._watchers.pop(upstream)
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
        await upstream.close()
        if upstream.entry.name not in self._upstreams:
            upstream.meters.forget()

    def _spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _get(self, name: str) -> Upstream:
        try:
            return self._upstreams[name]
        except KeyError as error:
            known = ", ".join(self._upstreams)
            raise UnknownUpstream(f"there is no upstream {name!r}; there are {known}", upstream=name) from error


def _taken_out() -> BreakerOpen:
    return BreakerOpen("not asked: it was taken out of the file of upstreams")


def _choices(upstreams: Mapping[str, Upstream]) -> dict[str, _Choices]:
    """For each model in which the role has a share, where its requests may go."""
    usable = {name: upstream for name, upstream in upstreams.items() if upstream.has_share}
    by_model: dict[str, list[Upstream]] = {}
    for upstream in usable.values():
        by_model.setdefault(upstream.entry.model, []).append(upstream)
    choices: dict[str, _Choices] = {}
    for model, replicas in by_model.items():
        names = dict.fromkeys(name for replica in replicas for name in replica.entry.fallback)
        others = (usable[name] for name in names if name in usable)
        choices[model] = _Choices(tuple(replicas), tuple(other for other in others if other not in replicas))
    return choices
