"""The chain of verdicts: each row's hash covers what it says and the hash before it.

`hash = sha256(previous hash + "\\n" + payload)`, both as UTF-8 text, the hash in hex. Changing, dropping or inserting
a row breaks every hash after it; who holds a later hash (it is logged daily) can prove the rows before it.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

GENESIS = "0" * 64
"""The hash before the first row."""


def payload_of(record: Mapping[str, Any]) -> str:
    """The text that is hashed: JSON with sorted names and no spaces. Raises `ValueError` for NaN and infinities."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def link(previous: str, payload: str) -> str:
    """The hash of a row after the row with the hash `previous`."""
    return hashlib.sha256(f"{previous}\n{payload}".encode()).hexdigest()
