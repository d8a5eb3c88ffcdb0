"""Starts the stack in order, restarts what falls over, and ends everything with itself."""

import fcntl
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from tools.local_stack.children import spawn, wait_or_kill
from tools.local_stack.embedded import LOCK
from tools.local_stack.plan import Program, Service

READY_TIMEOUT_S = 90.0
RESTART_AFTER_S = (2.0, 5.0, 15.0, 30.0)
STABLE_AFTER_S = 60.0


class StackError(Exception):
    """The stack cannot start; the message says what to do."""


def claim(state: Path) -> object:
    """Hold this state folder for one stack at a time. Keep what is returned: closing it lets go."""
    lock = (state / LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StackError(f"another `make run` holds {state}: stop it, or set LOCAL_STATE to another folder") from None
    return lock


def require_free_port(service: Service) -> None:
    """Raise when something already listens where a service wants to, naming it and the way out."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((service.host, service.port))
        except OSError as error:
            raise StackError(
                f"port {service.port} for {service.name} is taken{_listener(service.port)} ({error.strerror}): "
                f"stop what listens there, or set {service.port_variable} to a free port"
            ) from error


def _listener(port: int) -> str:
    try:
        found = [c for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port and c.pid]
        return f" by process {found[0].pid} ({psutil.Process(found[0].pid).name()})" if found else ""
    except psutil.Error:
        return ""


def readiness(service: Program) -> str | None:
    """None when a service is ready, else why not."""
    if not isinstance(service, Service):
        return None
    try:
        with urllib.request.urlopen(service.url + service.ready_path, timeout=5):  # noqa: S310 - our own http address
            return None
    except urllib.error.HTTPError as error:
        body = error.read().decode(errors="replace")
        return "; ".join(line for line in body.splitlines() if line.startswith("red")) or f"status {error.code}"
    except OSError as error:
        return str(error)


class Supervised:
    """One process that is kept alive: restarted after it ends, later each time it ends soon after its start."""

    def __init__(self, service: Program, *, env: Mapping[str, str], logs: Path, report: Callable[[str], None]) -> None:
        self.service = service
        self.log_path = logs / f"{service.name}.log"
        self._env = env
        self._report = report
        self._failures = 0
        self._restart_at: float | None = None
        self._started_at = 0.0
        self._log_start = 0
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; its output is appended to its log."""
        self._restart_at = None
        self._started_at = time.monotonic()
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            self.child = spawn(self.service.command, log=log, env=self._env)

    def keep_alive(self) -> None:
        """Call often: notices an end, and starts again when its time has come."""
        if self.child is None or self.child.poll() is None:
            return
        now = time.monotonic()
        if self._restart_at is None:
            self._failures = 0 if now - self._started_at > STABLE_AFTER_S else self._failures
            wait = RESTART_AFTER_S[min(self._failures, len(RESTART_AFTER_S) - 1)]
            self._failures += 1
            self._restart_at = now + wait
            self._report(
                f"{self.service.name} ended ({self.child.returncode}); starting it again in {wait:.0f} s. "
                f"Log: {self.log_path}"
            )
        elif now >= self._restart_at:
            self.start()

    def _said(self) -> str:
        """What the process said to people since its start: the lines that are no events, else the last events."""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()
        plain = [line for line in lines if not line.startswith("{")]
        return "\n".join((plain or lines)[-8:])

    def wait_until_ready(self) -> None:
        """Block until the service says so; raise with the end of its log when it ends or takes too long."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        reason = readiness(self.service)
        while reason is not None:
            ended = self.child is not None and self.child.poll() is not None
            if ended or time.monotonic() > deadline:
                what = "ended at its start" if ended else f"is not ready after {READY_TIMEOUT_S:.0f} s ({reason})"
                raise StackError(f"{self.service.name} {what}:\n{self._said()}\nLog: {self.log_path}")
            time.sleep(0.1)
            reason = readiness(self.service)


def stop_all(processes: Sequence[Supervised], *, grace_s: float = 10.0) -> None:
    """Ask all to stop at once, once each (a second signal would cancel what they finish), then wait for each."""
    running = [process.child for process in processes if process.child is not None and process.child.poll() is None]
    for child in running:
        child.terminate()
    deadline = time.monotonic() + grace_s
    for child in running:
        wait_or_kill(child, grace_s=max(0.0, deadline - time.monotonic()))
