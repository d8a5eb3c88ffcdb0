"""Who may call: a file of hashed keys, read again when it changes, and the guard for routes.

`python -m libs.keys NAME SCOPES [options]` makes a key, prints it once and stores only its SHA-256.
"""

import argparse
import fcntl
import hashlib
import json
import os
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Literal, TypeAlias, get_args

import structlog
from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.responses import Response

from libs.probes import Degraded
from libs.problems import Forbidden, Unauthorized
from libs.service_settings import ListenSettings
from libs.settings import SettingsError, load

Scope: TypeAlias = Literal["infer", "admin", "read", "trade", "switch", "panic", "rearm", "ingest"]
ALL_SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "lexi_"
LOOK_S = 0.1
"""How often the file of keys is looked at when requests come faster than that."""
OPERATOR = "operator"

log = structlog.get_logger(__name__)


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


_ENTRIES = TypeAdapter(tuple[Key, ...])


def digest(token: str) -> str:
    """The SHA-256 of a key, in hex. Keys are long and random, so no slow hash is needed."""
    return hashlib.sha256(token.encode()).hexdigest()


def read_keys(path: Path) -> tuple[Key, ...]:
    """The entries of a key file. Raises `KeyFileError` naming the entry and field at fault, `FileNotFoundError`."""
    try:
        entries = _ENTRIES.validate_json(path.read_bytes())
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


class KeyRing:
    """The keys of a file. A change is seen within `LOOK_S`; a broken file keeps the last good keys.

    Without a file there are no keys, so every guarded route refuses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = os.fspath(path)
        self._seen: tuple[int, int, int] | None = None
        self._by_digest: dict[str, Key] = {}
        self._by_header: dict[bytes, Key] = {}
        self._look_at = 0.0
        self._trouble: str | None = None
        self._refresh(first=True)

    @classmethod
    def load(cls, path: Path) -> "KeyRing":
        """The ring of a file, which may not exist yet."""
        return cls(path)

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._place)  # noqa: PTH116 - asked at every request, and half the price
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _refresh(self, *, first: bool = False) -> None:
        stamp = self._stamp()
        if stamp == self._seen and not first:
            return
        self._seen = stamp
        self._by_header = {}
        try:
            self._by_digest = {entry.sha256: entry for entry in read_keys(self._path)}
            self._trouble = None
            log.info("keys_read", path=str(self._path), keys=len(self._by_digest))
        except FileNotFoundError:
            self._by_digest = {}
            self._trouble = f"there is no key file {self._path}, so guarded routes refuse; `make key` makes one"
        except KeyFileError as error:
            self._trouble = f"{error}; the keys read before still hold"
            log.warning("key_file_broken", reason=str(error))

    def identify_header(self, authorization: bytes) -> Key | None:
        """As `identify`, for the header `Authorization: Bearer …` as it came. Known ones are remembered."""
        now = monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            self._refresh()
        key = self._by_header.get(authorization)
        if key is None:
            scheme, _, token = authorization.partition(b" ")
            if scheme.lower() == b"bearer":
                key = self._by_digest.get(digest(token.strip().decode("latin-1")))
            if key is not None and authorization == b"Bearer " + token:  # as clients write it: one entry a key
                self._by_header[authorization] = key
        return key

    def identify(self, token: str) -> Key | None:
        """The entry of a key, None for a wrong one, in a time that does not grow with the number of keys.

        The look-up is by the SHA-256 of what was sent. How long it takes may tell something of that hash, which says
        nothing about a key of 256 random bits: nobody can choose tokens so that their hashes approach a stored one.
        """
        self._refresh()
        return self._by_digest.get(digest(token))

    @property
    def empty(self) -> bool:
        """Whether no key at all is known."""
        return not self._by_digest

    async def check(self) -> str | None:
        """For `/ready`: yellow when the file is missing or broken."""
        self._refresh()
        return None if self._trouble is None else Degraded(self._trouble)


def bearer(request: Request) -> str:
    """The token of `Authorization: Bearer …`; empty when there is none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


@dataclass(frozen=True, slots=True)
class Guard:
    """A FastAPI dependency that lets a key with `scope` pass and returns it.

    The app keeps its `KeyRing` in `app.state.keys`. Raises `Unauthorized` or `Forbidden`.
    """

    scope: Scope

    def __call__(self, request: Request) -> Key:
        """The key of a request that may pass."""
        ring: KeyRing = request.app.state.keys
        token = bearer(request)
        key = ring.identify(token) if token else None
        if key is None:
            if ring.empty:
                raise Unauthorized("this service has no keys yet; `make key NAME=… SCOPES=…` makes one")
            raise Unauthorized("wrong key" if token else "send a key: `Authorization: Bearer …`")
        if self.scope not in key.scopes:
            raise Forbidden(f"the key {key.name} lacks the scope {self.scope}")
        return key


def require(scope: Scope) -> Guard:
    """The guard of a scope."""
    return Guard(scope)


class GuardedRoute(APIRoute):
    """A route that takes a body: its guards are asked before the body is read, which FastAPI reads first otherwise."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler behind the guards."""
        handler = super().get_route_handler()
        guards = [one.dependency for one in self.dependencies if isinstance(one.dependency, Guard)]

        async def guarded(request: Request) -> Response:
            for guard in guards:
                guard(request)
            return await handler(request)

        return guarded


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
    content = _ENTRIES.dump_python(entries, mode="json", exclude_defaults=True)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m libs.keys", description="Make a key and print it once.")
    parser.add_argument("name", help="who will use it, e.g. desk-1")
    parser.add_argument("scopes", help=f"comma-separated, of {', '.join(ALL_SCOPES)}; or all")
    parser.add_argument("--file", type=Path, help="the key file (default: API_KEYS_FILE, else LOCAL_STATE/keys.json)")
    plane = parser.add_argument_group("for /v1; what is not said is not limited")
    plane.add_argument("--models", help="comma-separated: the models it may ask for (default: every one)")
    plane.add_argument("--priority", help="interactive (default) or batch, which is served after it")
    plane.add_argument("--rpm", type=int, dest="requests_per_minute", help="requests per minute")
    plane.add_argument("--tpm", type=int, dest="tokens_per_minute", help="tokens per minute, of prompts and answers")
    plane.add_argument("--concurrent", type=int, help="calls at the same time")
    plane.add_argument("--choices", type=int, help="answers to one question, `n` (default: 4)")
    plane.add_argument(
        "--cache", help="on: answers may come from the reply cache without being asked to (default: off)"
    )
    plane.add_argument("--record", help="meta (default), or body: keep what is asked and answered")
    return parser


def _terms(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of an entry that the command line says."""
    said = {name: value for name, value in vars(options).items() if value is not None}
    terms: dict[str, Any] = {name: said[name] for name in ("priority", "cache", "record") if name in said}
    limits = {name: said[name] for name in KeyLimits.model_fields if name in said}
    models = tuple(word.strip() for word in said.get("models", "").split(",") if word.strip())
    return {**terms, **({"limits": limits} if limits else {}), **({"models": models} if models else {})}


def main(arguments: list[str] | None = None) -> int:
    """The command line: print the new key on stdout, what to know on stderr."""
    options = _parser().parse_args(arguments)
    try:
        path: Path = options.file or load(ListenSettings).keys_path
        token = create_key(path, options.name, parse_scopes(options.scopes), **_terms(options))
    except (KeyFileError, SettingsError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{token}\n")
    sys.stderr.write(f"stored its hash in {path}; the key is shown this once\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
