"""One request under way, and what has become of it so far."""

from dataclasses import KW_ONLY, dataclass
from time import monotonic
from uuid import UUID

from libs.keys import Key
from libs.llm.call_record import CallStatus
from libs.upstreams.clock import CallClock
from libs.upstreams.config import UpstreamEntry
from libs.upstreams.types import ChatReply, Priority, Usage
from services.api.dataplane.accounting import Finished
from services.api.dataplane.answer import Gist
from services.api.dataplane.flight import Flight
from services.api.dataplane.guard import Guard
from services.api.dataplane.inquiry import Endpoint, Inquiry
from services.api.dataplane.outlet import Outlet
from services.api.dataplane.stream import EventStream

PRIORITIES = {"interactive": int(Priority.INTERACTIVE), "batch": int(Priority.BATCH)}
NOTHING = Gist()
NO_TOKENS = Usage()

RawHeader = tuple[bytes, bytes]


@dataclass(slots=True)
class Call:
    """A request of a known key. `inquiry` is None until its body was read; what follows describes the answer.

    `working`: an engine has taken the request and did not refuse it. `flight` is there where the answer may be cached,
    `events` is the stream once there is one.
    """

    id: UUID
    request_id: str
    endpoint: Endpoint
    _: KW_ONLY
    key: Key
    clock: CallClock
    guard: Guard
    outlet: Outlet
    inquiry: Inquiry | None = None
    cache: bytes = b"bypass"
    flight: Flight | None = None
    upstream: str = ""
    model: str = ""
    attempts: int = 0
    working: bool = False
    cached: bool = False
    gist: Gist = NOTHING
    events: EventStream | None = None

    @property
    def priority(self) -> int:
        """The number of the key's class, lower being earlier."""
        return PRIORITIES[self.key.priority]

    @property
    def keeps_body(self) -> bool:
        """Whether the caller's messages and answers are kept."""
        return self.key.record == "body"

    def sent_to(self, entry: UpstreamEntry) -> None:
        """A request left for that place."""
        self.attempts += 1
        self.working = True
        self.upstream, self.model = entry.name, entry.model

    async def replay(self, answer: ChatReply) -> None:
        """Give an answer that was given before: its text is the raw body."""
        self.cache, self.cached = b"hit", True
        self.upstream, self.model = answer.upstream, answer.model
        self.gist = Gist(finish_reason=answer.finish_reason, text=answer.text if self.keeps_body else "")
        self.guard.unwatch()
        self.guard.client_must_take(monotonic())
        if self.inquiry is not None and self.inquiry.stream:
            await self.outlet.begin(*self.described())
            await self.outlet.piece(answer.text.encode(), last=True)
        else:
            await self.outlet.whole(200, answer.text.encode(), *self.described())

    def tokens_used(self) -> int | None:
        """For the caller's budget: the engine's count, 0 where none worked on it, None where the estimate stands.

        Where a stream broke off before the engine counted, it is at least what was seen of it.
        """
        usage = self.outcome().usage
        if not self.working or usage is None or self.inquiry is None:
            return None if self.working else 0
        counted = usage.tokens_in + usage.tokens_out
        return max(counted, self.inquiry.tokens) if usage.estimated else counted

    def described(self) -> tuple[RawHeader, ...]:
        """Headers that say where the answer comes from and where the time went, in milliseconds so far."""
        waited = self.clock.waited_s
        ours = monotonic() - self.clock.started_at - waited
        timing = b"gateway;dur=%.2f, upstream;dur=%.2f" % (ours * 1000, waited * 1000)
        told = (b"x-lexi-cache", self.cache), (b"server-timing", timing)
        return (b"x-lexi-upstream", self.upstream.encode()), *told

    @property
    def pieces(self) -> int:
        """How many pieces of a streamed answer came."""
        return 0 if self.events is None else self.events.pieces

    def outcome(self) -> Gist:
        """What is known of the answer, also of one that broke off: then the engine's tokens so far are estimated."""
        events, inquiry = self.events, self.inquiry
        if inquiry is None or not self.working:
            return self.gist
        if events is None:
            estimated = Usage(tokens_in=inquiry.prompt_tokens, estimated=True)
            return self.gist if self.gist.usage else self.gist._replace(usage=estimated)
        usage = events.usage or Usage(tokens_in=inquiry.prompt_tokens, tokens_out=events.pieces, estimated=True)
        return Gist(usage, events.finish_reason, events.text)

    def finished(self, status: CallStatus, *, http_status: int, error: str | None) -> Finished:
        """What goes on record."""
        now, inquiry, gist = monotonic(), self.inquiry, self.outcome()
        return Finished(
            id=self.id,
            request_id=self.request_id,
            caller=self.key.name,
            endpoint=self.endpoint,
            asked_model=inquiry.model if inquiry is not None else "",
            stream=inquiry is not None and inquiry.stream,
            http_status=http_status,
            status=status,
            error=error,
            upstream=self.upstream,
            model=self.model,
            attempts=self.attempts,
            cached=self.cached,
            finish_reason=gist.finish_reason,
            usage=gist.usage or NO_TOKENS,
            time=self.clock.split(now),
            overhead_s=max(0.0, now - self.clock.started_at - self.clock.waited_s),
            body=inquiry.body if inquiry is not None and self.keeps_body else None,
            reply=gist.text if self.keeps_body else "",
        )
