"""Machines for tests: network namespaces, each with a cable to this one, and relays to what listens here alone."""

import asyncio
import os
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
CHUNK = 64 * 1024


class NoMachines(Exception):
    """Namespaces cannot be made here; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A namespace. `host` is this machine as it sees it; `run` the words that begin a command there."""

    name: str
    host: str
    cable: str

    @property
    def run(self) -> tuple[str, ...]:
        """What comes before a command that is to run there."""
        return ("ip", "netns", "exec", self.name)

    def unplug(self) -> None:
        """Cut the cable: nothing reaches it any more, and nobody is told."""
        ip("link", "set", self.cable, "down")

    def plug(self) -> None:
        """Mend the cable."""
        ip("link", "set", self.cable, "up")


def ip(*words: str) -> None:
    """Run `ip`. Raises `NoMachines` where it is missing or refused."""
    try:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise NoMachines("this proof needs the command `ip` (package iproute2)") from error
    except subprocess.CalledProcessError as error:
        said = f"`ip {' '.join(words)}` said: {error.stderr.strip()}"
        raise NoMachines(f"this proof needs root and the right to make network namespaces; {said}") from error


@contextmanager
def machine(number: int) -> Generator[Machine]:
    """A machine of its own network, gone after the block."""
    name, cable, network = f"lexi-{os.getpid()}-{number}", f"lx{os.getpid() % 10**6}n{number}", f"10.213.{number}"
    ip("netns", "add", name)
    try:
        ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("addr", "add", f"{network}.1/24", "dev", cable)
        ip("link", "set", cable, "up")
        ip("-n", name, "addr", "add", f"{network}.2/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")
        yield Machine(name, host=f"{network}.1", cable=cable)
    finally:
        ip("netns", "del", name)
        with suppress(NoMachines):  # the kernel takes the cable away with the namespace, a moment later
            ip("link", "del", cable)


@asynccontextmanager
async def relay(host: str, connect: Connect) -> AsyncGenerator[int]:
    """Listens on an address of this machine, and carries bytes to and from what `connect` opens; the port."""
    tasks: set[asyncio.Task[None]] = set()

    async def both_ways(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            there_reader, there_writer = await connect()
            async with asyncio.TaskGroup() as ways:
                ways.create_task(_carry(reader, there_writer))
                ways.create_task(_carry(there_reader, writer))
        except* (OSError, asyncio.CancelledError):
            writer.close()
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(both_ways, host, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes until one side ends."""
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
