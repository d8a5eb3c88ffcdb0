"""The process of a panic exit as the api sees it: it writes to memory and to a log, and never to a pipe.

So nothing that becomes of the api can block it or end it, and a full disk cannot either.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).parents[3]
COMMAND = (sys.executable, "-m", "libs.trading.panic")
RESUME = "--resume"
LOG_NAME = "panic.log"
TOLD_OF_LOG = 1000


class Child:
    """A process in a session of its own. Raises `OSError` where none can be started."""

    def __init__(self, state: Path, arguments: list[str], environment: Mapping[str, str]) -> None:
        paths = [str(ROOT), environment.get("PYTHONPATH", "")]
        variables = dict(environment) | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        self._answer = os.memfd_create("panic-answer")
        self._log = _open_log(state)
        self._log_from = os.fstat(self._log).st_size
        self._result: dict[str, Any] | None = None
        self._words = ""
        self._closed = False
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module; the arguments are no shell's
                [*COMMAND, f"--state={state}", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=self._answer,
                stderr=self._log,
                env=variables,
                start_new_session=True,
            )
        except OSError:
            self._close()
            raise
        self.pid = self._process.pid

    @property
    def over(self) -> bool:
        """Whether it has ended. What it wrote is kept then, and its files are let go of."""
        if self._process.poll() is None:
            return False
        if not self._closed:
            self._read()
            self._close()
        return True

    def result(self) -> dict[str, Any] | None:
        """The one JSON object that it prints, None while there is none. It may go on for a moment after that."""
        if self._result is None and not self.over:
            self._read()
        return self._result

    def last_words(self) -> str:
        """The end of what it said on stderr, once it is over."""
        code = self._process.poll()
        return self._words[-TOLD_OF_LOG:] or f"the process ended with code {code} and said nothing"

    def kill(self) -> None:
        """End it; for dry runs only."""
        self._process.kill()

    def _read(self) -> None:
        try:
            found: object = json.loads(_content(self._answer, 0))
        except (OSError, ValueError):
            found = None
        if isinstance(found, dict):
            self._result = cast("dict[str, Any]", found)
        try:
            self._words = _content(self._log, self._log_from).decode("utf-8", "replace").strip()
        except OSError:
            self._words = ""

    def _close(self) -> None:
        self._closed = True
        os.close(self._answer)
        os.close(self._log)


def _open_log(state: Path) -> int:
    try:
        return os.open(state / LOG_NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError:
        return os.memfd_create("panic-log")  # a disk that cannot be written stops no exit


def _content(descriptor: int, start: int) -> bytes:
    return os.pread(descriptor, max(os.fstat(descriptor).st_size - start, 0), start)
