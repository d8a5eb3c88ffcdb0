"""Whether the embedded Postgres of a stack answers: its address stays on disk when the stack has ended."""

import fcntl
import socket
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

SOCKET = ".s.PGSQL.5432"
LOCK = "run.lock"
"""What a stack holds for as long as it runs."""
PATIENCE_S = 5.0


def nobody_answers(url: str) -> bool:
    """Whether an address names a socket's folder in which nobody listens. Other addresses are left to their users."""
    folder = parse_qs(urlsplit(url).query).get("host", [""])[0]
    if not folder.startswith("/"):
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PATIENCE_S)
        try:
            probe.connect(str(Path(folder) / SOCKET))
        except (FileNotFoundError, ConnectionRefusedError):
            return True
        except OSError:
            return False  # somebody may be there: whoever asks properly will say what is wrong
    return False


def not_running(state: Path) -> str:
    """The sentence for a person: what is down, the stack or only its database."""
    if _is_held(state / LOCK):
        return f"the stack of {state} runs, and its Postgres does not answer: see {state}/logs/postgres.log"
    return f"nothing runs here ({state}): start the stack with `make run`, or name a database in DATABASE_URL"


def _is_held(lock: Path) -> bool:
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
