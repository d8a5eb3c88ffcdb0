"""Postgres' own programs for dumping and restoring, of a version that reads the server."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from tools.local_stack.postgres import PostgresError, binaries
from tools.local_stack.psql import connection_variables

VERSION = re.compile(r"\) (\d+)")


class BackupError(Exception):
    """A dump or a restore did not happen; the message says why, and what was left."""


def program(name: str, *, server: int) -> Path:
    """`pg_dump` or `pg_restore` of at least the server's major version: the path's, else the wheel's.

    An older one refuses a newer server, and a distribution's client is often older than the server in a container.
    """
    seen: list[str] = []
    for path in _candidates(name):
        told = subprocess.run([path, "--version"], check=False, capture_output=True, text=True)
        major = VERSION.search(told.stdout)
        if major is not None and int(major[1]) >= server:
            return path
        seen.append(f"{path} is {told.stdout.strip() or 'unusable'}")
    raise BackupError(f"{name} {server} or newer is needed for this server; {'; '.join(seen) or 'there is none'}")


def _candidates(name: str) -> Iterator[Path]:
    found = shutil.which(name)
    if found is not None:
        yield Path(found)
    try:
        wheel = binaries() / name
    except PostgresError:
        return
    if wheel.exists():
        yield wheel


def run(
    command: Sequence[str | Path], *, url: str, read: IO[bytes] | None = None, write: IO[bytes] | None = None
) -> None:
    """Run a program on the database at an address. The password goes by the environment, not by the list of processes.

    Raises `BackupError` with what the program said last.
    """
    done = subprocess.run(
        command,
        check=False,
        env=os.environ | connection_variables(url),
        stdin=read or subprocess.DEVNULL,
        stdout=write or subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise BackupError(f"{Path(command[0]).name} ended with {done.returncode}: {' '.join(said[-3:])}")
