"""A restart from its beginning to its end: drain, restart, wait until it is back. Every step is bounded in time."""

import asyncio
import time
from http import HTTPStatus

import httpx
import structlog

from services.watchdog.commands import CommandError, Program
from services.watchdog.docker import Container, DockerError
from services.watchdog.plan import Plan

ASK_EVERY_S = 1.0
ASK_S = 5.0

log = structlog.get_logger(__name__)


class RestartError(Exception):
    """It was not restarted; the message says why."""


class Restarter:
    """Restarts what the plan names, through Docker or by its command."""

    def __init__(self, plan: Plan, container: Container | None, client: httpx.AsyncClient) -> None:
        self._plan = plan
        self._container = container
        self._client = client
        self._drains = Program(plan.drain_command)
        self._restarts = Program(plan.restart_command)

    async def drain(self) -> None:
        """Let what is under way end, as far as the plan says how. A failure is logged: the restart follows anyway."""
        for what, step in (("url", self._post_drain), ("command", self._run_drain)):
            try:
                await step()
            except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, OSError, CommandError) as error:
                log.warning("drain_failed", by=what, error=str(error) or type(error).__name__)

    async def restart(self) -> None:
        """Restart it. A command is waited for also where this is cancelled, until that happens again.

        Raises `RestartError`.
        """
        plan = self._plan
        try:
            if plan.restart_command:
                await self._run_restart()
            elif self._container is not None:
                await self._container.restart(grace_s=plan.stop_grace_s, within_s=plan.restart_timeout_s)
        except (CommandError, DockerError) as error:
            raise RestartError(str(error)) from error

    async def back(self) -> bool | None:
        """Whether it answered 200 within the plan's time; None where the plan names no address to ask."""
        plan = self._plan
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
                return (await self._client.get(self._plan.health_url)).status_code == HTTPStatus.OK
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, OSError):
            return False

    async def _run_restart(self) -> None:
        """Run the restart's command. One that stops and then starts must not be ended between the two."""
        work = asyncio.ensure_future(self._restarts.run(within_s=self._plan.restart_timeout_s))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            log.info("stopping", waits_for=self._plan.subject, at_most_s=self._plan.restart_timeout_s)
            await asyncio.wait([work])
            error = work.exception()
            log.warning("restart_command_ended", error=None if error is None else str(error))
            raise

    async def _post_drain(self) -> None:
        if self._plan.drain_url:
            async with asyncio.timeout(self._plan.drain_timeout_s):
                (await self._client.post(self._plan.drain_url, timeout=None)).raise_for_status()

    async def _run_drain(self) -> None:
        if self._plan.drain_command:
            await self._drains.run(within_s=self._plan.drain_timeout_s)
