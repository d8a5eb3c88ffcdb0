"""Who may call: a file of hashed keys, read again when it changes, and the guard for routes."""

from libs.keys.entries import ALL_SCOPES, Key, KeyFileError, KeyLimits, Scope, digest, parse_scopes, read_keys
from libs.keys.guard import Guard, GuardedRoute, bearer, require
from libs.keys.making import OPERATOR, PREFIX, create_key, ensure_operator_key, write_private
from libs.keys.ring import LOOK_S, KeyRing

__all__ = [
    "ALL_SCOPES",
    "LOOK_S",
    "OPERATOR",
    "PREFIX",
    "Guard",
    "GuardedRoute",
    "Key",
    "KeyFileError",
    "KeyLimits",
    "KeyRing",
    "Scope",
    "bearer",
    "create_key",
    "digest",
    "ensure_operator_key",
    "parse_scopes",
    "read_keys",
    "require",
    "write_private",
]
