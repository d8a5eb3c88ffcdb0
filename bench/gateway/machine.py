"""Where things run: two cores, processes pinned to them, CPU time to the nanosecond, folders that stay."""

import os
import socket
import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from tools.local_stack.children import spawn

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".bench"
"""What is compiled and installed for the bench, once; not part of the project."""
CORES = sorted(os.sched_getaffinity(0))
WORKER_CORE = CORES[0]
"""Each candidate's only core."""
LOAD_CORE = CORES[1 % len(CORES)]
"""The core of everything else: generator, upstream, Postgres, and this process."""


@contextmanager
def on_core(core: int) -> Generator[None]:
    """What is started in the block is pinned to `core` for good."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def start(
    command: Sequence[str | Path], log_path: Path, *, core: int, env: Mapping[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    """A child on one core that dies with this process; its output goes to a file."""
    with log_path.open("ab") as log, on_core(core):
        return spawn(command, log=log, env=None if env is None else os.environ | env, cwd=ROOT)


def free_port() -> int:
    """A port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def family(pid: int) -> list[psutil.Process]:
    """A process and all its descendants."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def cpu_s(pid: int) -> float:
    """CPU seconds, user and system, of all threads that a process and its descendants ever had.

    Read from each process's CPU clock, which counts nanoseconds where /proc counts hundredths.
    """
    return sum(time.clock_gettime((~member.pid << 3) | 2) for member in family(pid))


def memory_mb(pid: int) -> float:
    """Resident memory of a process and its descendants, MB."""
    return sum(member.memory_info().rss for member in family(pid)) / 1e6
