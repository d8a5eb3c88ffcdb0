"""Commands run here, each bounded in time. They run without a shell."""

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from subprocess import DEVNULL, PIPE, Popen
from typing import IO

import structlog

MOST_BYTES = 65_536
LOOK_EVERY_S = 0.02
END_S = 2.0
"""How long a command that was killed may take to be gone."""

log = structlog.get_logger(__name__)


class CommandError(Exception):
    """A command could not be run, failed, or took too long; the message is for a person."""


class Program:
    """One command. Where a run of it could not be ended, no other is begun until that one is gone.

    Nothing ends a process that waits in a driver which hangs, and one of another user may not be killed. So nobody
    waits for the end of what was killed without a bound.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)
        self._left: Popen[bytes] | None = None

    async def output(self, *, within_s: float) -> str:
        """What it prints. It and its children are killed when the time is up.

        Raises `CommandError`, also for an exit code other than 0 and for `MOST_BYTES` or more.
        """
        process = self._begin(captured=True)
        try:
            output, errors, code = await self._all_of(process, within_s=within_s)
        except TimeoutError as error:
            raise self._too_long(within_s) from error
        if code != 0:
            said = first_line((errors or output).decode(errors="replace"))
            raise CommandError(f"{self._words[0]} ended with code {code}: {said}")
        if len(output) == MOST_BYTES:
            raise CommandError(f"{self._words[0]} printed {MOST_BYTES} bytes or more")
        return output.decode(errors="replace")

    async def run(self, *, within_s: float) -> None:
        """Run it; its words go where ours go. What it leaves running in the background is left alone.

        It is killed when the time is up, but left alone where this call is cancelled. Raises `CommandError`.
        """
        process = self._begin(captured=False)
        try:
            async with asyncio.timeout(within_s):
                code = await _ended(process)
        except TimeoutError as error:
            await self._kill(process)
            raise self._too_long(within_s) from error
        if code != 0:
            raise CommandError(f"{self._words[0]} ended with code {code}")

    def _begin(self, *, captured: bool) -> Popen[bytes]:
        if self._left is not None and self._left.poll() is None:
            raise CommandError(f"the last {self._words[0]} still runs and could not be ended: process {self._left.pid}")
        self._left = None
        pipe = PIPE if captured else None
        try:
            return Popen(self._words, stdin=DEVNULL, stdout=pipe, stderr=pipe, bufsize=0, start_new_session=True)  # noqa: S603 - what the settings name
        except OSError as error:
            raise CommandError(f"cannot run {self._words[0]}: {error.strerror}") from error

    async def _all_of(self, process: Popen[bytes], *, within_s: float) -> tuple[bytes, bytes, int]:
        try:
            async with asyncio.timeout(within_s):
                return await asyncio.gather(_take(process.stdout), _take(process.stderr), _ended(process))
        finally:
            _close(process)
            # Also where it ended itself, but left somebody behind who holds its output open.
            await self._kill(process)

    async def _kill(self, process: Popen[bytes]) -> None:
        reason = "it does not end"
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # nobody of its group is left
            reason = "its group is gone"
        except OSError as error:  # another user's, as with sudo
            reason = error.strerror or type(error).__name__
        with suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await _ended(process)
        if process.poll() is None:
            self._left = process
            log.warning("command_not_ended", command=self._words[0], process=process.pid, reason=reason)

    def _too_long(self, within_s: float) -> CommandError:
        goes_on = f", and could not be ended: process {self._left.pid}" if self._left is not None else ""
        return CommandError(f"{self._words[0]} took longer than {within_s:g} s{goes_on}")


def first_line(text: str) -> str:
    """The first line that says anything, cut to a length that fits a log."""
    return next((line.strip()[:200] for line in text.splitlines() if line.strip()), "it said nothing")


async def _ended(process: Popen[bytes]) -> int:
    while (code := process.poll()) is None:  # noqa: ASYNC110 - another process ends, of which no event tells
        await asyncio.sleep(LOOK_EVERY_S)
    return code


async def _take(pipe: IO[bytes] | None) -> bytes:
    """All that comes, so that a writer is never stuck, of which the first part is kept."""
    kept, stream = b"", asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), pipe)
    try:
        while chunk := await stream.read(MOST_BYTES):
            kept += chunk[: MOST_BYTES - len(kept)]
    finally:
        transport.close()
    return kept


def _close(process: Popen[bytes]) -> None:
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
