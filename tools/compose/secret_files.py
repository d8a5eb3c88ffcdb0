"""The secrets of a Compose stack as files of one folder: `python -m tools.compose.secret_files [FOLDER]`.

What is missing is made, readable by its owner alone; what is there is never touched. Standard library only, so that
`make secrets` works before anything is installed.
"""

import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

FOLDER = Path("secrets")
OPERATOR_KEY = "operator.key"
POSTGRES_PASSWORD = "postgres_password"  # noqa: S105 - the name of a file
PREFIX = "lexi_"


def _random() -> str:
    return secrets.token_urlsafe(32)


def _operator_key() -> str:
    return PREFIX + _random()


def _nothing() -> str:
    return ""


MAKERS: dict[str, Callable[[], str]] = {
    POSTGRES_PASSWORD: _random,
    OPERATOR_KEY: _operator_key,
    "llm_api_key": _random,
    "paper_key_id": _random,
    "paper_secret_key": _random,
    "alpaca_key_id": _nothing,
    "alpaca_secret_key": _nothing,
    "grafana_password": _random,
}
"""Each file with what stands in it at first. A random key for the model is harmless where the server asks for none."""


class SecretError(Exception):
    """A secret cannot be made or read; the message names the file."""


def make_missing(folder: Path) -> list[str]:
    """Make each secret whose file is not there, mode 0600. Returns their names. Raises `SecretError`."""
    made: list[str] = []
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SecretError(f"{folder}: {error.strerror}") from error
    for name, maker in MAKERS.items():
        path = folder / name
        if path.is_dir():
            raise SecretError(f"{path} is a folder; remove it, and run this again")
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            continue
        except OSError as error:
            raise SecretError(f"{path}: {error.strerror}") from error
        value = maker()
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f"{value}\n" if value else "")
        made.append(name)
    return made


def main(arguments: list[str]) -> None:
    """Make what is missing and say so, never with a letter of it."""
    folder = Path(arguments[0]) if arguments else FOLDER
    try:
        made = make_missing(folder)
    except SecretError as error:
        sys.exit(f"secrets: {error}")
    for name in made:
        print(f"made {folder / name}")
    if not made:
        print(f"{folder}: every secret is there; none was changed")


if __name__ == "__main__":
    main(sys.argv[1:])
