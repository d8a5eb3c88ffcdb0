"""The key of the example strategy: its own, so that each verdict and order carries its name."""

from itertools import count
from pathlib import Path

from libs.keys import KeyFileError, create_key, digest, parse_scopes, read_keys, write_private
from tools.local_stack.plan import STRATEGY

SCOPES = parse_scopes("read,trade")


def ensure_strategy_key(keys_file: Path, state: Path) -> str:
    """The key in `follow-signal.key`, made where it is missing or no longer known.

    A name whose key is lost stays taken, since only a person removes entries; the next one gets a number. Raises
    `KeyFileError`.
    """
    plain = state / f"{STRATEGY}.key"
    token = plain.read_text(encoding="utf-8").strip() if plain.exists() else ""
    entries = read_keys(keys_file) if keys_file.exists() else ()
    if any(entry.sha256 == digest(token) and entry.scopes >= SCOPES for entry in entries):
        return token
    taken = {entry.name for entry in entries}
    names = (STRATEGY if number == 1 else f"{STRATEGY}-{number}" for number in count(1))
    name = next(name for name in names if name not in taken)
    token = create_key(keys_file, name, SCOPES)
    try:
        write_private(plain, f"{token}\n")
    except OSError as error:
        raise KeyFileError(f"{plain}: {error.strerror}") from error
    return token
