"""What a request asks for, read out of path, query and body. Everything raises `Refusal` for what cannot be read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import TypeVar

from services.paper.types import INVALID, Refusal

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, read whole."""

    path: Mapping[str, str] = field(default_factory=dict[str, str])
    query: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""

    def moment(self, name: str) -> datetime | None:
        """A moment in the query, None where it is not there; without a zone it is UTC."""
        value = self.query.get(name)
        if not value:
            return None
        try:
            read = datetime.fromisoformat(value)
            return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
        except (ValueError, OverflowError) as error:
            raise Refusal(422, INVALID, f"invalid {name}: {value!r} is not a moment of ISO 8601") from error

    def count(self, name: str, *, default: int, most: int) -> int:
        """A number from 1 to `most` in the query."""
        value = self.query.get(name)
        if not value:
            return default
        if not (value.isascii() and value.isdecimal() and len(value) <= len(str(most)) and 1 <= int(value) <= most):
            raise Refusal(422, INVALID, f"invalid {name}: from 1 to {most}")
        return int(value)

    def word(self, name: str, *words: str) -> str:
        """One of a few words in the query; the first where it is not there."""
        value = self.query.get(name) or words[0]
        if value not in words:
            raise Refusal(422, INVALID, f"invalid {name}: one of {', '.join(words)}")
        return value

    def newest_first(self) -> bool:
        """Whether the list is to begin with the newest."""
        return self.word("direction", "desc", "asc") == "desc"


def between(items: Iterable[tuple[datetime, T]], ask: Ask) -> list[T]:
    """Those strictly after `after` and strictly before `until`, in the order in which they came."""
    after, until = ask.moment("after"), ask.moment("until")
    return [item for at, item in items if (after is None or at > after) and (until is None or at < until)]


def page(items: list[T], ask: Ask, *, size: int) -> list[T]:
    """The first of them in the direction asked for."""
    return list(islice(reversed(items) if ask.newest_first() else items, size))
