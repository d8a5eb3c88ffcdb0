"""Whether the model answers, asked only when somebody wants to know."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import structlog
from prometheus_client import Gauge

from libs.llm.types import Answer
from libs.upstreams.types import Priority, TimeLimits

HEALTHY = Gauge("lexi_llm_health_ok", "Whether the last health completion came back as the literal OK.")

REUSED_SHARE = 0.25
"""The part of the TTL for which a result is given again; the rest is what a new completion may take. Together they
keep a model that froze right after a good answer from being called well for longer than the TTL."""

CONNECT_LIMIT_S = 2.0

log = structlog.get_logger(__name__)


class Asker(Protocol):
    """The part of the client that is needed here."""

    async def ask(
        self,
        key: str,
        inputs: Mapping[str, object],
        *,
        priority: Priority,
        limits: TimeLimits,
        use_cache: bool,
    ) -> Answer:
        """One completion; a model's failure is an answer too."""
        ...


@dataclass(frozen=True, slots=True)
class Health:
    """One result. `cached` says that it was measured for an earlier caller, not that a reply cache was read."""

    ok: bool
    cached: bool
    model: str
    latency_ms: float
    checked_at: datetime


class HealthProbe:
    """Answers from its last result while that is fresh, else with one completion that concurrent callers share."""

    def __init__(self, client: Asker, *, model: str, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._model = model
        self._reuse_s = ttl_s * REUSED_SHARE
        self._wait_s = ttl_s - self._reuse_s
        self._clock = clock
        self._last: Health | None = None
        self._fresh_until = 0.0
        self._probe: asyncio.Task[Health] | None = None

    async def read(self) -> Health:
        """The model's health, at most the TTL behind the truth, within the TTL."""
        if self._last is not None and self._clock() < self._fresh_until:
            last = self._last
            return Health(
                last.ok, cached=True, model=last.model, latency_ms=last.latency_ms, checked_at=last.checked_at
            )
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._measure())
        return await asyncio.shield(self._probe)  # a caller that leaves does not end it for the others

    async def close(self) -> None:
        """End a probe under way."""
        if self._probe is not None and not self._probe.done():
            self._probe.cancel()
            await asyncio.wait({self._probe})

    async def _measure(self) -> Health:
        begun = self._clock()
        ok, model = await self._complete()
        took_ms = round((self._clock() - begun) * 1000, 1)
        health = Health(ok, cached=False, model=model, latency_ms=took_ms, checked_at=datetime.now(UTC))
        self._last = health
        self._fresh_until = self._clock() + self._reuse_s
        HEALTHY.set(ok)
        return health

    async def _complete(self) -> tuple[bool, str]:
        limits = TimeLimits(
            connect_s=min(CONNECT_LIMIT_S, self._wait_s),
            first_token_s=self._wait_s,
            idle_s=self._wait_s,
            total_s=self._wait_s,
        )
        try:
            async with asyncio.timeout(self._wait_s):
                answer = await self._client.ask("health", {}, priority=Priority.HEALTH, limits=limits, use_cache=False)
        except TimeoutError:
            log.warning("health_completion_overran", limit_s=self._wait_s)
            return False, self._model
        except Exception:  # health must answer whatever is wrong with us
            log.exception("health_completion_failed")
            return False, self._model
        good = answer.status == "ok" and not answer.cached and answer.text.strip() == "OK"
        if not good:
            log.warning("model_unhealthy", status=answer.status, error=answer.error)
        return good, answer.model or self._model
