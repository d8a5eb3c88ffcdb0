"""Making keys: the file holds only their SHA-256."""

import fcntl
import json
import os
import secrets
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from libs.keys.entries import ALL_SCOPES, ENTRIES, Key, KeyFileError, Scope, digest, read_keys

PREFIX = "lexi_"

OPERATOR = "operator"


def write_private(path: Path, content: str) -> None:
    """Replace a file in one step, readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def _locked(path: Path) -> Generator[None, None, None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _entries_of(path: Path) -> tuple[Key, ...]:
    try:
        return read_keys(path)
    except FileNotFoundError:
        return ()


def _store(path: Path, entries: tuple[Key, ...]) -> None:
    """Write the file for people to read and edit: what an entry does not say is left out."""
    content = ENTRIES.dump_python(entries, mode="json", exclude_defaults=True)
    for entry in content:
        entry["scopes"].sort(key=ALL_SCOPES.index)
    write_private(path, json.dumps(content, indent=2) + "\n")


def create_key(path: Path, name: str, scopes: frozenset[Scope], **terms: Any) -> str:
    """Make a key and store its hash. Returns the key, which is nowhere else.

    `terms` are more fields of its entry: `models`, `priority`, `limits`, `cache`, `record`. Raises `KeyFileError`
    naming what is wrong.
    """
    token = PREFIX + secrets.token_urlsafe(32)
    try:
        entry = Key(name=name, sha256=digest(token), scopes=scopes, **terms)
    except ValidationError as error:
        raise KeyFileError(_complaint(name, error)) from error
    with _locked(path):
        entries = _entries_of(path)
        if any(known.name == name for known in entries):
            raise KeyFileError(f"{path} has a key called {name} already; remove its entry first to replace it")
        _store(path, (*entries, entry))
    return token


def _complaint(name: str, error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    if first["loc"] == ("name",):
        return f"a key cannot be called {name!r}: 1 to 64 letters, digits, dots, dashes"
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def ensure_operator_key(path: Path, local_state: Path) -> str:
    """The operator's key with all scopes, made where it is missing: plain in `operator.key` (0600), hashed in `path`.

    A second start finds the same key. A key file that lost the entry, or holds another one, gets the operator's again.
    """
    plain = local_state / "operator.key"
    with _locked(path):
        token = plain.read_text(encoding="utf-8").strip() if plain.exists() else ""
        if not token:
            token = PREFIX + secrets.token_urlsafe(32)
            write_private(plain, token + "\n")
        entries = _entries_of(path)
        entry = Key(name=OPERATOR, sha256=digest(token), scopes=frozenset(ALL_SCOPES))
        others = tuple(known for known in entries if known.name != OPERATOR)
        known = next((known for known in entries if known.name == OPERATOR), None)
        if known is None or known.sha256 != entry.sha256 or known.scopes != entry.scopes:
            _store(path, (entry, *others))
    return token
