"""How full the card is: the readers, and how what they print is read."""

import re
import sys
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeAlias

from services.watchdog.commands import CommandError, Program, first_line
from services.watchdog.docker import Container, DockerError
from services.watchdog.plan import Plan

NUMBER = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,20})?)(?: MiB)?")
MOST_CARDS = 64


class UnreadableError(Exception):
    """The memory could not be read; the message says why."""


class Reading(NamedTuple):
    """The used memory in MiB, of the fullest card where there are several, and the life of the container it belongs to.

    A life is what lies between a start of the container and its end. It is empty where Docker is not asked.
    """

    mib: float
    life: str = ""


Reader: TypeAlias = Callable[[], Awaitable[Reading]]
"""Raises `UnreadableError`."""

_Read: TypeAlias = Callable[[], Awaitable[str]]


def shown(mib: float) -> str:
    """A number of MiB for a person: to the byte, so that what is above the limit never looks like the limit."""
    return str(int(mib)) if mib.is_integer() else repr(mib)


def parse(text: str, *, cards: int = 0) -> float:
    """The greatest of the numbers in a text with one a line, in MiB. Raises `UnreadableError` for anything else.

    Where `cards` is not 0, there must be as many: of a card that is left out, nobody knows how full it is.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [NUMBER.fullmatch(line) for line in lines]
    if not 0 < len(lines) <= MOST_CARDS or None in found:
        raise UnreadableError(f"not a number of MiB: {first_line(text)}")
    if cards and len(lines) != cards:
        raise UnreadableError(f"{len(lines)} readings for {cards} cards: {first_line(text)}")
    return max(float(match[1]) for match in found if match)


def choose_reader(plan: Plan, container: Container | None) -> Reader:
    """The reader that the plan names. `docker` needs a container; with one, each reading belongs to a life of it."""
    if plan.reader == "docker" and container is not None:
        return _reader(_inside(container, plan.read_command, within_s=plan.read_timeout_s), plan, container)
    own = [sys.executable, "-m", "services.watchdog.nvml", plan.gpu]
    here = Program(own if plan.reader == "nvml" else plan.read_command)
    return _reader(_here(here, within_s=plan.read_timeout_s), plan, container)


def _reader(read: _Read, plan: Plan, container: Container | None) -> Reader:
    async def reader() -> Reading:
        try:
            before = await container.life() if container is not None else ""
            mib = parse(await read(), cards=plan.cards)
            after = await container.life() if container is not None else ""
        except (CommandError, DockerError) as error:
            raise UnreadableError(str(error)) from error
        if before != after:
            raise UnreadableError(f"{plan.container} was started anew while it was read")
        return Reading(mib, after)

    return reader


def _here(program: Program, *, within_s: float) -> _Read:
    async def read() -> str:
        return await program.output(within_s=within_s)

    return read


def _inside(container: Container, command: list[str], *, within_s: float) -> _Read:
    async def read() -> str:
        return await container.output_of(command, within_s=within_s)

    return read
