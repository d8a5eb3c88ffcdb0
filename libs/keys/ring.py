"""The keys that are known now, read again when their file changes."""

import os
from pathlib import Path
from time import monotonic

import structlog

from libs.keys.entries import Key, KeyFileError, digest, read_keys
from libs.probes import Degraded

LOOK_S = 0.1
"""How often the file of keys is looked at when requests come faster than that."""

log = structlog.get_logger(__name__)


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
