"""A restart from its beginning to its end: drain, restart, wait until it is back. Every step is bounded in time."""

import asyncio
import time
from dataclasses import dataclass
from http import HTTPStatus

import httpx
import structlog

from services.watchdog.commands import CommandError, run
from services.watchdog.docker import Container, DockerError
from services.watchdog.plan import Plan

ASK_EVERY_S = 1.0
ASK_S = 5.0

log = structlog.get_logger(__name__)


class RestartError(Exception):
    """It was not restarted; the message says why."""


@dataclass(frozen=True, slots=True)
class Restarter:
    """Restarts what the plan names, through Docker or by its command."""

    plan: Plan
    container: Container | None
    client: httpx.AsyncClient

    async def drain(self) -> None:
        """Let what is under way end, as far as the plan says how. A failure is logged: the restart follows anyway."""
        for what, step in (("url", self._post_drain), ("command", self._run_drain)):
            try:
                async with asyncio.timeout(self.plan.drain_timeout_s):
                    await step()
            except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, OSError, CommandError) as error:
                log.warning("drain_failed", by=what, error=str(error) or type(error).__name__)

    async def restart(self) -> None:
        """Restart it. Raises `RestartError`."""
        plan = self.plan
        try:
            if plan.restart_command:
                await run(plan.restart_command, within_s=plan.restart_timeout_s)
            elif self.container is not None:
                await self.container.restart(grace_s=plan.stop_grace_s, within_s=plan.restart_timeout_s)
        except (CommandError, DockerError) as error:
            raise RestartError(str(error)) from error

    async def back(self) -> bool | None:
        """Whether it answered 200 within the plan's time; None where the plan names no address to ask."""
        plan = self.plan
        if not plan.health_url:
            return None
        until = time.monotonic() + plan.health_timeout_s
        while time.monotonic() < until:
            if await self._healthy():
                return True
            await asyncio.sleep(ASK_EVERY_S)
        return False

    async def _healthy(self) -> bool:
        try:
            async with asyncio.timeout(ASK_S):
                return (await self.client.get(self.plan.health_url)).status_code == HTTPStatus.OK
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, OSError):
            return False

    async def _post_drain(self) -> None:
        if self.plan.drain_url:
            (await self.client.post(self.plan.drain_url)).raise_for_status()

    async def _run_drain(self) -> None:
        if self.plan.drain_command:
            await run(self.plan.drain_command, within_s=self.plan.drain_timeout_s)
