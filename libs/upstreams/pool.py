"""All upstreams of one process."""

import asyncio
from collections.abc import Callable, Mapping
from time import monotonic

from libs.upstreams.choice import usable_first
from libs.upstreams.config import LEXI, UpstreamEntry, load_entries
from libs.upstreams.settings import UpstreamSettings
from libs.upstreams.types import ChatReply, ChatRequest, Role, TimeLimits, UpstreamStatus
from libs.upstreams.upstream import Upstream


class UnknownUpstreamError(KeyError):
    """No entry of that name."""


class Upstreams:
    """The engines a process may ask, each with this process's share of its slots. Implements `Engine`."""

    def __init__(
        self, entries: Mapping[str, UpstreamEntry], *, role: Role, clock: Callable[[], float] = monotonic
    ) -> None:
        self._upstreams = {name: Upstream(entry, role, clock) for name, entry in entries.items()}
        self._watchers: list[asyncio.Task[None]] = []

    @classmethod
    def load(cls, settings: UpstreamSettings, *, role: Role) -> "Upstreams":
        """Read the file of upstreams. Raises `UpstreamConfigError` naming file, entry and field."""
        return cls(load_entries(settings), role=role)

    async def start(self) -> None:
        """Look at every upstream once, so that the first call finds its dialect known, and go on looking."""
        await asyncio.gather(*(upstream.beat() for upstream in self._upstreams.values()))
        self._watchers = [
            asyncio.create_task(upstream.watch(), name=f"heartbeat-{name}")
            for name, upstream in self._upstreams.items()
        ]

    async def close(self) -> None:
        """Stop looking and drop all connections; calls in flight end as broken."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        self._watchers = []
        for upstream in self._upstreams.values():
            await upstream.close()

    async def chat(self, request: ChatRequest, limits: TimeLimits, *, upstream: str = LEXI) -> ChatReply:
        """Ask one upstream. Raises an `UpstreamError`; cancelling closes the upstream's socket at once."""
        return await self._get(upstream).chat(request, limits)

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

    def _get(self, name: str) -> Upstream:
        try:
            return self._upstreams[name]
        except KeyError as error:
            raise UnknownUpstreamError(
                f"there is no upstream {name!r}; there are {', '.join(self._upstreams)}"
            ) from error
