"""Which of several upstreams to try first. Pure."""

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Protocol, TypeVar

from libs.upstreams.types import UpstreamStatus


class Place(Protocol):
    """What the choice looks at. `load` is calls held and waiting for each slot."""

    @property
    def load(self) -> float: ...
    @property
    def dead(self) -> bool: ...


P = TypeVar("P", bound=Place)


def usable_first(declared: Iterable[UpstreamStatus]) -> tuple[str, ...]:
    """Names in the declared order, those that are down or stuck last, those without a slot for this process left out.

    One that looks dead is still tried when nothing else is left: the look may be old.
    """
    candidates = [status for status in declared if status.slots > 0]
    return tuple(status.name for status in sorted(candidates, key=lambda status: status.state in {"down", "stuck"}))


def best_first(replicas: Sequence[P], fallbacks: Sequence[P], *, turn: int) -> tuple[P, ...]:
    """Replicas by load, least first, then fallbacks as declared; those that look dead after all others.

    Among equals a different replica is first for each `turn`, so that a quiet process does not always ask the same.
    """
    many = len(replicas)
    ranked = [(place.dead, 0, place.load, (number - turn) % many, place) for number, place in enumerate(replicas)]
    ranked += [(place.dead, 1, 0.0, number, place) for number, place in enumerate(fallbacks)]
    ranked.sort(key=_rank)
    return tuple(entry[4] for entry in ranked)


_rank = itemgetter(0, 1, 2, 3)
