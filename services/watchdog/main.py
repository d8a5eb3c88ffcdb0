"""The watchdog as a process: its parts put together, its probes beside it, and one reading on demand."""

import asyncio
import signal
import ssl
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx
import structlog

from libs import telemetry
from services.watchdog.alarm import Alarm
from services.watchdog.docker import Container, open_container
from services.watchdog.page import Page, PortTakenError
from services.watchdog.plan import Plan
from services.watchdog.readings import Reader, UnreadableError, choose_reader, shown
from services.watchdog.restarts import Restarter
from services.watchdog.vitals import Vitals
from services.watchdog.watch import Watch

WITHIN, OVER, UNREADABLE = 0, 1, 3

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """What both ways of running stand on."""

    container: Container | None
    client: httpx.AsyncClient
    reader: Reader


@asynccontextmanager
async def open_parts(plan: Plan, *, acting: bool = True) -> AsyncGenerator[Parts, None]:
    """The plan's container, reader, and a client for its addresses. Nothing is connected to yet.

    The container is there where the plan reads in it or, `acting`, restarts it through Docker.
    """
    # Reading the certificates costs memory, so it is done only where an address asks for them.
    secure = any(url.startswith("https:") for url in (plan.drain_url, plan.health_url, plan.webhook or ""))
    trust = ssl.create_default_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    async with AsyncExitStack() as stack:
        container = None
        if plan.reader == "docker" or (acting and not plan.restart_command):
            container = await stack.enter_async_context(open_container(plan.container, host=plan.docker_host))
        client = await stack.enter_async_context(httpx.AsyncClient(verify=trust, trust_env=False))
        yield Parts(container, client, choose_reader(plan, container))


async def watch(plan: Plan) -> None:
    """Watch until cancelled. Raises `PortTakenError`."""
    async with open_parts(plan) as parts:
        vitals = Vitals(limit_mib=plan.limit_mib, budget=plan.budget)
        alarm = Alarm(plan.webhook, parts.client)
        restarter = Restarter(plan, parts.container, parts.client)
        server = await Page(vitals).open(plan.host, plan.metrics_port)
        log.info("watching", reader=plan.reader, subject=plan.subject, limit_mib=plan.limit_mib, readings=plan.readings)
        try:
            await Watch(plan, reader=parts.reader, restarter=restarter, alarm=alarm, vitals=vitals).run()
        finally:
            alarm.close()
            server.close()


async def read_once(plan: Plan) -> int:
    """Read once, print it, act on nothing; gives the exit code."""
    async with open_parts(plan, acting=False) as parts:
        try:
            reading = (await parts.reader()).mib
        except UnreadableError as error:
            sys.stderr.write(f"watchdog: unreadable: {error}\n")
            return UNREADABLE
    over = reading > plan.limit_mib
    sys.stdout.write(
        f"{shown(reading)} MiB, {'above' if over else 'within'} the limit of {shown(plan.limit_mib)} MiB\n"
    )
    return OVER if over else WITHIN


async def _until_told(plan: Plan, *, once: bool) -> int:
    """Run, and end at SIGTERM or SIGINT: at once, but for a restart command, which may not be left half way.

    A reading that was broken off says nothing about the card, so its exit code is that of the signal.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(read_once(plan) if once else watch(plan))
    told = 0

    def end(number: int) -> None:
        nonlocal told
        told = number
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    try:
        return await task or 0
    except asyncio.CancelledError:
        if not told:
            raise
        log.info("stopped")
        return 128 + told if once else 0


def run(plan: Plan, *, once: bool) -> int:
    """Watch until told to stop, or read once; gives the exit code."""
    telemetry.configure("watchdog")
    try:
        return asyncio.run(_until_told(plan, once=once))
    except PortTakenError as error:
        sys.stderr.write(f"watchdog: {error}\n")
        return 2
    except Exception:
        log.exception("crashed")
        return 4
