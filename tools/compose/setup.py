"""The first thing a Compose stack does: `python -m tools.compose.setup`, once, before Postgres starts.

A container sees the files of `./secrets` with the owner they have on the host, who is not the user it runs as. So this
runs as root, without a network, makes what is missing there, and copies each secret into a volume where the one user
who needs it can read it. It also puts the hash of the operator's key among the keys.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from libs.keys import KeyFileError, ensure_operator_key
from libs.settings import SettingsError
from tools.compose.secret_files import POSTGRES_PASSWORD, SecretError, make_missing

HOST = Path("/host-secrets")
KEYS = Path("/keys")
OURS = 10001
DATABASE_URL = "database_url"


@dataclass(frozen=True, slots=True)
class Place:
    """A volume, the user who reads it, and the secrets it holds."""

    folder: Path
    user: int
    names: tuple[str, ...]


PLACES = (
    Place(
        Path("/run/lexi"),
        OURS,
        ("llm_api_key", "paper_key_id", "paper_secret_key", "alpaca_key_id", "alpaca_secret_key"),
    ),
    Place(Path("/run/postgres"), 999, (POSTGRES_PASSWORD,)),  # the user postgres of the image postgres:16
    Place(Path("/run/grafana"), 472, ("grafana_password",)),  # the user of Grafana's image
)


def database_url(password: str) -> str:
    """Where the Postgres of this stack answers, for `DATABASE_URL_FILE`."""
    return f"postgresql://lexi:{quote(password, safe='')}@postgres:5432/lexi"


def put(path: Path, content: str, *, user: int) -> None:
    """Write a secret for one user, replacing an older one in one step."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o440)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(content)
        os.fchown(file.fileno(), user, user)
    fresh.replace(path)


def read(folder: Path, name: str) -> str:
    """A secret of the host's folder, without the line's end. Raises `SecretError`."""
    try:
        return (folder / name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SecretError(f"secrets/{name} cannot be read: {error}") from error


def hand_to_owner_of(folder: Path, names: list[str]) -> None:
    """Give new files to whoever owns the folder on the host, who made the clone and is to read the operator's key."""
    owner = folder.stat()
    for name in names:
        os.chown(folder / name, owner.st_uid, owner.st_gid)


def setup(host: Path, keys: Path, places: tuple[Place, ...]) -> list[str]:
    """Make, copy, and enter the operator's key. Returns the names of what was made."""
    made = make_missing(host)
    hand_to_owner_of(host, made)
    password = read(host, POSTGRES_PASSWORD)
    if not password:
        raise SecretError(f"secrets/{POSTGRES_PASSWORD} is empty; remove it, and a random one is made")
    for place in places:
        for name in place.names:
            put(place.folder / name, read(host, name), user=place.user)
    put(places[0].folder / DATABASE_URL, database_url(password), user=places[0].user)
    ensure_operator_key(keys / "keys.json", host)
    hand_to_owner_of(keys, [path.name for path in keys.iterdir()])
    return made


def main() -> None:
    """Set up, or end with one line that names the file at fault."""
    try:
        made = setup(HOST, KEYS, PLACES)
    except (SecretError, KeyFileError, SettingsError) as error:
        sys.exit(f"setup: {error}")
    except OSError as error:
        sys.exit(f"setup: {error.filename or ''}: {error.strerror}")
    for name in made:
        print(f"made secrets/{name}")
    print("the secrets are in place; the operator's key is in secrets/operator.key")


if __name__ == "__main__":
    main()
