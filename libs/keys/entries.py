"""The file of keys: what an entry says, and reading it."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

Scope: TypeAlias = Literal["infer", "admin", "read", "trade", "switch", "panic", "rearm", "ingest"]

ALL_SCOPES: tuple[Scope, ...] = get_args(Scope)


class KeyFileError(Exception):
    """The key file cannot be read or changed; the message says why."""


class KeyLimits(BaseModel):
    """How much one key may ask for; what is None is not limited."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    concurrent: int | None = Field(default=None, ge=1)
    choices: int = Field(default=4, ge=1)


class Key(BaseModel):
    """One entry of the key file. `models` empty means every model.

    `cache` says whether answers may come from the reply cache where a request does not say so itself; `record` whether
    what was asked and answered through `/v1` is kept, or only that it was.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: frozenset[Scope]
    models: tuple[str, ...] = ()
    priority: Literal["interactive", "batch"] = "interactive"
    limits: KeyLimits = KeyLimits()
    cache: Literal["on", "off"] = "off"
    record: Literal["meta", "body"] = "meta"


ENTRIES = TypeAdapter(tuple[Key, ...])


def digest(token: str) -> str:
    """The SHA-256 of a key, in hex. Keys are long and random, so no slow hash is needed."""
    return hashlib.sha256(token.encode()).hexdigest()


def read_keys(path: Path) -> tuple[Key, ...]:
    """The entries of a key file. Raises `KeyFileError` naming the entry and field at fault, `FileNotFoundError`."""
    try:
        entries = ENTRIES.validate_json(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise KeyFileError(f"{path}: {place}: {first['msg']}") from error
    names = Counter(entry.name for entry in entries)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise KeyFileError(f"{path}: the name {twice[0]} is there twice")
    return entries


def parse_scopes(words: str) -> frozenset[Scope]:
    """Read `infer,read`, or `all`. Raises `KeyFileError` naming the unknown word."""
    if words.strip() == "all":
        return frozenset(ALL_SCOPES)
    asked = [word.strip() for word in words.split(",") if word.strip()]
    known: dict[str, Scope] = {scope: scope for scope in ALL_SCOPES}
    unknown = [word for word in asked if word not in known]
    if unknown or not asked:
        named = f"there is no scope {unknown[0]}" if unknown else "a key needs a scope"
        raise KeyFileError(f"{named}; there are: {', '.join(ALL_SCOPES)}, or all")
    return frozenset(known[word] for word in asked)
