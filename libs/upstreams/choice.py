"""Which of several upstreams to try first. Pure."""

from collections.abc import Iterable

from libs.upstreams.types import UpstreamStatus


def usable_first(declared: Iterable[UpstreamStatus]) -> tuple[str, ...]:
    """Names in the declared order, those that are down or stuck last, those without a slot for this process left out.

    One that looks dead is still tried when nothing else is left: the look may be old.
    """
    candidates = [status for status in declared if status.slots > 0]
    return tuple(status.name for status in sorted(candidates, key=lambda status: status.state in {"down", "stuck"}))
