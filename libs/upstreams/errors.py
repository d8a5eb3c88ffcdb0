"""What can go wrong between us and an engine.

UpstreamError
├── CannotSend            nothing left this process: retrying elsewhere is safe
│   ├── UnknownUpstream       no entry of that name, or none any more
│   ├── PromptTooLong         prompt plus answer exceed the context window
│   ├── NoSlot                the deadline passed while waiting for this process's share of slots
│   ├── QueueFull             too much waits for this process's share of slots, or it would be answered too late
│   ├── BreakerOpen           the upstream failed lately and is not asked for a while
│   └── ConnectFailed         no connection within the limit
├── Refused               the engine answered with an error status
├── FirstTokenTimeout     accepted, then silent
├── IdleTimeout           silent between two chunks
├── DeadlineExceeded      the total time of the call is used up
├── BrokenStream          cut, malformed, or ended without a finish reason
└── NotRecorded           a playback holds no such answer
"""


class UpstreamError(Exception):
    """A call to an engine failed."""

    code: str = "upstream_error"
    retryable: bool = True
    quotes_engine: bool = False
    """Whether the message holds words of the engine, which may quote a prompt."""

    @property
    def in_short(self) -> str:
        """What may be shown to anybody: the code, and the message where all of it is ours."""
        return self.code if self.quotes_engine else f"{self.code}: {self}"

    def __init__(self, message: str, *, upstream: str = "") -> None:
        super().__init__(message)
        self.upstream = upstream


class CannotSend(UpstreamError):
    """Nothing was sent."""

    code = "cannot_send"


class UnknownUpstream(CannotSend):
    """The file of upstreams has no entry of that name, or none any more."""

    code = "unknown_upstream"
    retryable = False


class PromptTooLong(CannotSend):
    """The prompt plus the answer's room exceed the context window."""

    code = "prompt_too_long"
    retryable = False


class NoSlot(CannotSend):
    """No slot of this process's share became free in time."""

    code = "no_slot"
    retryable = False


class QueueFull(CannotSend):
    """Too much waits already, or what waits would be answered too late. `retry_after_s` is when there may be room."""

    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float, upstream: str = "") -> None:
        super().__init__(message, upstream=upstream)
        self.retry_after_s = retry_after_s


class BreakerOpen(CannotSend):
    """The upstream failed lately and is not asked for a while: `retry_after_s`, as far as is known."""

    code = "breaker_open"

    def __init__(self, message: str, *, retry_after_s: float = 1.0, upstream: str = "") -> None:
        super().__init__(message, upstream=upstream)
        self.retry_after_s = retry_after_s


class ConnectFailed(CannotSend):
    """No connection within the limit."""

    code = "connect_failed"


class Refused(UpstreamError):
    """The engine answered with an error status. 4xx other than 408, 409, 425 and 429 are the request's own fault.

    `content` is what its body said, as far as it was read.
    """

    code = "refused"
    quotes_engine = True

    def __init__(
        self,
        message: str,
        *,
        status: int,
        retry_after_s: float | None = None,
        content: bytes = b"",
        upstream: str = "",
    ) -> None:
        super().__init__(message, upstream=upstream)
        self.status = status
        self.retry_after_s = retry_after_s
        self.content = content
        self.retryable = status in {408, 409, 425, 429} or status >= 500

    @property
    def in_short(self) -> str:
        """The code and the status."""
        return f"{self.code}: answered {self.status}"


class FirstTokenTimeout(UpstreamError):
    """The request was accepted and then nothing came."""

    code = "first_token_timeout"


class IdleTimeout(UpstreamError):
    """The stream went silent between two chunks."""

    code = "idle_timeout"


class DeadlineExceeded(UpstreamError):
    """The total time of the call is used up."""

    code = "deadline_exceeded"
    retryable = False


class BrokenStream(UpstreamError):
    """The stream was cut, was malformed, or ended without a finish reason.

    `of_request`: the request may be why it cannot be read, so that it does not speak against the engine.
    """

    code = "broken_stream"

    def __init__(self, message: str, *, of_request: bool = False, upstream: str = "") -> None:
        super().__init__(message, upstream=upstream)
        self.of_request = of_request


class NotRecorded(UpstreamError):
    """A playback holds no answer to these messages."""

    code = "not_recorded"
    retryable = False
