"""What a page's address says: it holds what was searched for or compared, so that it can be sent on."""

from collections.abc import Mapping
from datetime import datetime
from urllib.parse import urlencode
from uuid import UUID


def address(path: str, values: Mapping[str, object]) -> str:
    """A path with those query values that say something."""
    said = {name: str(value) for name, value in values.items() if value not in (None, "")}
    return f"{path}?{urlencode(said)}" if said else path


def uuid_of(text: str) -> UUID | None:
    """The id that a text is, or None."""
    try:
        return UUID(text)
    except ValueError:
        return None


def moment_of(text: str) -> datetime | None:
    """The moment that a link names, or None."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if moment.tzinfo is None else moment
