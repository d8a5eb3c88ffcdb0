"""Commands run here, each bounded in time. They run without a shell."""

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from contextlib import suppress

MOST_BYTES = 65_536


class CommandError(Exception):
    """A command could not be run, failed, or took too long; the message is for a person."""


async def output_of(command: Sequence[str], *, within_s: float) -> str:
    """What a command prints. It and its children are killed when the time is up.

    Raises `CommandError`, also for an exit code other than 0 and for `MOST_BYTES` or more.
    """
    process = await _start(command, captured=True)
    try:
        async with asyncio.timeout(within_s):
            output, errors, code = await asyncio.gather(_take(process.stdout), _take(process.stderr), process.wait())
    except TimeoutError as error:
        raise CommandError(f"{command[0]} took longer than {within_s:g} s") from error
    finally:
        # Also where it ended itself, but left somebody behind who holds its output open.
        await _kill(process)
    if code != 0:
        raise CommandError(
            f"{command[0]} ended with code {code}: {first_line((errors or output).decode(errors='replace'))}"
        )
    if len(output) == MOST_BYTES:
        raise CommandError(f"{command[0]} printed {MOST_BYTES} bytes or more")
    return output.decode(errors="replace")


async def run(command: Sequence[str], *, within_s: float) -> None:
    """Run a command whose words go where ours go. What it leaves running in the background is left alone.

    Raises `CommandError`.
    """
    process = await _start(command, captured=False)
    try:
        async with asyncio.timeout(within_s):
            code = await process.wait()
    except TimeoutError as error:
        raise CommandError(f"{command[0]} took longer than {within_s:g} s") from error
    finally:
        if process.returncode is None:
            await _kill(process)
    if code != 0:
        raise CommandError(f"{command[0]} ended with code {code}")


def first_line(text: str) -> str:
    """The first line that says anything, cut to a length that fits a log."""
    return next((line.strip()[:200] for line in text.splitlines() if line.strip()), "it said nothing")


async def _start(command: Sequence[str], *, captured: bool) -> Process:
    pipe = PIPE if captured else None
    try:
        return await asyncio.create_subprocess_exec(
            *command, stdin=DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
        )
    except OSError as error:
        raise CommandError(f"cannot run {command[0]}: {error.strerror}") from error


async def _take(stream: asyncio.StreamReader | None) -> bytes:
    """All that comes, so that a writer is never stuck, of which the first part is kept."""
    kept = b""
    while stream is not None and (chunk := await stream.read(MOST_BYTES)):
        kept += chunk[: MOST_BYTES - len(kept)]
    return kept


async def _kill(process: Process) -> None:
    with suppress(ProcessLookupError):  # nobody of its group is left
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
