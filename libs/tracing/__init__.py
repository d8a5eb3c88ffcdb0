"""Traces, as far as the house's own code sees them: spans, and the `traceparent` that goes on to the engines.

Off unless `start` says otherwise, and then nothing of OpenTelemetry is imported: a span is `IDLE`, which does nothing,
and a caller's own `traceparent` is passed on as it came. `sdk` is the one file that knows OpenTelemetry.

A span names what was done, by whom, and how it ended. Prompts, replies, headlines, bodies and keys are not among it,
and neither are the words of errors, since these may quote them.
"""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Literal, Protocol, TypeAlias

Kind: TypeAlias = Literal["internal", "server", "client"]
Value: TypeAlias = str | int | float | bool | list[str]

TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
NOTHING: Mapping[str, Value] = {}

_passed: ContextVar[str] = ContextVar("traceparent", default="")


class Span(Protocol):
    """One span under way."""

    def note(self, values: Mapping[str, Value]) -> None:
        """Attributes, by their whole names."""
        ...

    def rename(self, name: str) -> None:
        """Call it something else, now that more is known."""
        ...

    def fail(self, error_type: str) -> None:
        """It ended in an error of that type."""
        ...


class Idle(AbstractContextManager["Idle"]):
    """A span where nothing is traced."""

    def __exit__(self, *_: object) -> None:
        return None

    def note(self, values: Mapping[str, Value]) -> None:
        """Nothing."""

    def rename(self, name: str) -> None:
        """Nothing."""

    def fail(self, error_type: str) -> None:
        """Nothing."""


class Tracing(Protocol):
    """What makes spans, where there is something."""

    def span(
        self, name: str, kind: Kind, attributes: Mapping[str, Value], *, within: object | None
    ) -> AbstractContextManager[Span]:
        """A span that is current inside its block."""
        ...

    def here(self) -> object:
        """The place in the trace."""
        ...

    def continued(self, traceparent: str) -> object | None:
        """The place in the trace that a caller's header names; None where it names none."""
        ...

    def traceparent(self) -> str:
        """The header of the current span; empty where there is none."""
        ...

    def trace_id(self) -> str:
        """The id of the current trace; empty where there is none."""
        ...

    def close(self) -> None:
        """Send what waits, for a bounded time."""
        ...


IDLE = Idle()
_tracing: Tracing | None = None


def install(tracing: Tracing | None) -> None:
    """Trace from now on with this; None ends it."""
    global _tracing  # noqa: PLW0603 - one per process, set before anything is served
    _tracing = tracing


def is_on() -> bool:
    """Whether anything is traced."""
    return _tracing is not None


def span(
    name: str, kind: Kind = "internal", *, attributes: Mapping[str, Value] = NOTHING, within: object | None = None
) -> AbstractContextManager[Span]:
    """A span around a block, below the current one, or below the place `within`, as `here` gave it."""
    return IDLE if _tracing is None else _tracing.span(name, kind, attributes, within=within)


def here() -> object | None:
    """The place in the trace, for work that goes on elsewhere; None where nothing is traced."""
    return None if _tracing is None else _tracing.here()


def trace_id() -> str:
    """The current trace; empty where nothing is traced."""
    return "" if _tracing is None else _tracing.trace_id()


def continued(traceparent: str | None) -> object | None:
    """The place in the trace that a caller's header names, for `within`."""
    return None if _tracing is None or traceparent is None else _tracing.continued(traceparent)


def close() -> None:
    """Send what waits and trace no more."""
    if _tracing is not None:
        _tracing.close()
        install(None)


def arrived(given: str | None) -> None:
    """A request brought this `traceparent`. Where nothing is traced it goes to the engine as it is, if it is one."""
    if given is not None and _tracing is None and TRACEPARENT.fullmatch(given):
        _passed.set(given)


def outgoing() -> str:
    """The `traceparent` for an engine; empty where there is none."""
    return _passed.get() if _tracing is None else _tracing.traceparent()
