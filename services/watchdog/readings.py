"""How full the card is: the readers, and how what they print is read."""

import re
import sys
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from services.watchdog.commands import CommandError, first_line, output_of
from services.watchdog.docker import Container, DockerError
from services.watchdog.plan import Plan

NUMBER = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(?: MiB)?")
MOST_CARDS = 64


class UnreadableError(Exception):
    """The memory could not be read; the message says why."""


Reader: TypeAlias = Callable[[], Awaitable[float]]
"""Gives the used memory in MiB, of the fullest card where there are several. Raises `UnreadableError`."""


def parse(text: str) -> float:
    """The greatest of the numbers in a text with one a line, in MiB. Raises `UnreadableError` for anything else."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [NUMBER.fullmatch(line) for line in lines]
    if not 0 < len(lines) <= MOST_CARDS or None in found:
        raise UnreadableError(f"not a number of MiB: {first_line(text)}")
    return max(float(match[1]) for match in found if match)


def choose_reader(plan: Plan, container: Container | None) -> Reader:
    """The reader that the plan names. `docker` needs a container."""
    if plan.reader == "nvml":
        own = [sys.executable, "-m", "services.watchdog.nvml", plan.gpu]
        return _here(own, within_s=plan.read_timeout_s)
    if plan.reader == "docker" and container is not None:
        return _inside(container, plan.read_command, within_s=plan.read_timeout_s)
    return _here(plan.read_command, within_s=plan.read_timeout_s)


def _here(command: list[str], *, within_s: float) -> Reader:
    async def read() -> float:
        try:
            return parse(await output_of(command, within_s=within_s))
        except CommandError as error:
            raise UnreadableError(str(error)) from error

    return read


def _inside(container: Container, command: list[str], *, within_s: float) -> Reader:
    async def read() -> float:
        try:
            return parse(await container.output_of(command, within_s=within_s))
        except DockerError as error:
            raise UnreadableError(str(error)) from error

    return read
