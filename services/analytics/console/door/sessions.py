"""Who is signed in. Sessions and their keys live in this process's memory alone: a restart signs everybody out."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import SecretStr

from libs.keys import KeyRing, Scope

IDLE_S = 3600.0
"""A session ends when nobody has looked for so long; an open page looks all the time."""
LONGEST_S = 12 * 3600.0
"""A session ends after a shift, whoever looks."""
MOST_SESSIONS = 1000


@dataclass(slots=True)
class Session:
    """One sign-in. `form_token` must come back with every form, so that no other site can post in somebody's name."""

    name: str
    token: SecretStr
    scopes: frozenset[Scope]
    begun: float
    seen: float
    form_token: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    def may(self, scope: Scope) -> bool:
        """Whether the key behind it has a scope."""
        return scope in self.scopes


class Sessions:
    """The sessions by the cookie that names them."""

    def __init__(self, keys: KeyRing, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._clock = clock
        self._sessions: dict[str, Session] = {}

    def sign_in(self, token: str) -> tuple[str, Session] | None:
        """A cookie and its session for a key, None for a wrong one or one that may not read."""
        key = self._keys.identify(token)
        if key is None or "read" not in key.scopes:
            return None
        self._forget_ended()
        if len(self._sessions) >= MOST_SESSIONS:
            self._sessions.pop(min(self._sessions, key=lambda each: self._sessions[each].seen))
        now = self._clock()
        cookie = secrets.token_urlsafe(32)
        session = self._sessions[cookie] = Session(key.name, SecretStr(token), key.scopes, begun=now, seen=now)
        return cookie, session

    def find(self, cookie: str) -> Session | None:
        """The session of a cookie while it lasts. A key that was taken away ends it, changed scopes hold at once."""
        session = self._sessions.get(cookie)
        if session is None:
            return None
        key = self._keys.identify(session.token.get_secret_value())
        if key is None or self._ended(session):
            del self._sessions[cookie]
            return None
        session.seen = self._clock()
        session.scopes = key.scopes
        return session

    def sign_out(self, cookie: str) -> None:
        """End a session."""
        self._sessions.pop(cookie, None)

    def _ended(self, session: Session) -> bool:
        now = self._clock()
        return now - session.seen > IDLE_S or now - session.begun > LONGEST_S

    def _forget_ended(self) -> None:
        for cookie in [cookie for cookie, session in self._sessions.items() if self._ended(session)]:
            del self._sessions[cookie]
