"""How a call ends: its client is told, its row is written, and the two agree."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from libs.llm.call_record import CallStatus
from libs.upstreams.errors import DeadlineExceeded, FirstTokenTimeout, IdleTimeout, NoSlot, UpstreamError
from services.api.dataplane.accounting import Accounts
from services.api.dataplane.call import Call
from services.api.dataplane.errors import NO_RETRY, ApiError, from_upstream

CLIENT_LEFT = 499
"""The status of a request whose client did not wait for one, in metrics and rows."""
STALLED = "client_stalled"
FAILED = "failed"
"""The status of a response whose engine says, in a whole answer, that it could not make one."""
TIMEOUTS = (DeadlineExceeded, FirstTokenTimeout, IdleTimeout, NoSlot)

log = structlog.get_logger(__name__)


async def conduct(call: Call, work: Coroutine[Any, Any, None], accounts: Accounts) -> None:
    """Run the work of a call and see it to its end, whatever that is."""
    status: CallStatus = "ok"
    error: ApiError | None = None
    detail = ""
    try:
        await work
    except ApiError as refusal:
        status, error = "failed", refusal
    except UpstreamError as failure:
        status, error = "timed_out" if isinstance(failure, TIMEOUTS) else "failed", from_upstream(failure)
        detail = failure.in_short if failure.quotes_engine and not call.keeps_body else str(failure)
    except asyncio.CancelledError:
        status, error = _cut(call)
    except Exception:
        log.exception("request_failed", request_id=call.request_id, endpoint=call.endpoint)
        status, error = "failed", ApiError(500, "internal_error", "an error on our side; the log has it")
    if error is None:
        failed = call.outcome().finish_reason == FAILED
        said = "upstream_error: the response failed" if failed else None
        accounts.close(call.finished("failed" if failed else "ok", http_status=call.outlet.status, error=said))
        return
    http_status = call.outlet.status or error.status
    accounts.close(call.finished(status, http_status=http_status, error=f"{error.code}: {detail or error.message}"))
    if error.status != CLIENT_LEFT and error.code != STALLED:
        await _tell(call, error)


def _cut(call: Call) -> tuple[CallStatus, ApiError]:
    """Why the work was cancelled: by its guard, or by the end of the process."""
    ending, task = call.guard.ending, asyncio.current_task()
    if ending is not None and task is not None:
        task.uncancel()
    if ending == "left":
        return "cancelled", ApiError(CLIENT_LEFT, "client_left", "the client went away")
    if ending is None:
        headers = {"Retry-After": "2", "Connection": "close"}
        return "failed", ApiError(503, "shutting_down", "this gateway is stopping", headers=headers)
    if call.inquiry is None:
        headers = {"Connection": "close"}
        return "timed_out", ApiError(408, "request_timeout", "the body did not come in time", headers=headers)
    if call.outlet.status and call.guard.client_stalls:
        return "timed_out", ApiError(504, STALLED, "the client stopped reading")
    limit = call.clock.limits.total_s
    return "timed_out", ApiError(504, "deadline_exceeded", f"not answered within {limit:g} s", headers=NO_RETRY)


async def _tell(call: Call, error: ApiError) -> None:
    """Say it: as an answer, or as the last event of a stream that has begun."""
    if not call.outlet.status:
        await call.outlet.refuse(error)
    elif call.outlet.streaming and call.events is not None:
        await call.outlet.piece(call.events.error_event(error.document()), last=True)
