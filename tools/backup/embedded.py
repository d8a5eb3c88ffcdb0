"""The embedded database of `make run`, started alone and empty, to be filled."""

import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tools.backup.programs import BackupError
from tools.local_stack.postgres import EmbeddedPostgres
from tools.local_stack.supervise import claim

DATABASE = "lexi"


@contextmanager
def database_to_fill(state: Path) -> Generator[None, None, None]:
    """Have `DATABASE_URL` name a database: the one it names already, else the embedded one, started for the time being.

    Raises `BackupError` where an embedded database is there already, and `StackError` while a stack runs on it.
    """
    if os.environ.get("DATABASE_URL") or os.environ.get("DATABASE_URL_FILE"):
        yield
        return
    state.mkdir(parents=True, exist_ok=True)
    held = claim(state)
    folder = state / "postgres"
    if (folder / "data").exists():
        raise BackupError(f"{folder} holds a database; move it away, and a new one is made: mv {folder} {folder}.old")
    server = EmbeddedPostgres(folder, report=lambda line: print(line, file=sys.stderr))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the server is stopped, too
    try:
        server.start()
        server.ensure_database(DATABASE)
        os.environ["DATABASE_URL"] = server.url(DATABASE)
        yield
    finally:
        server.stop()
        del held
