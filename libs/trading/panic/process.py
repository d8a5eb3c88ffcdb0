"""The panic exit as a process: the real broker, clock and disk around it, and the webhook told of it."""

import asyncio
import math
import os
import socket
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar
from uuid import UUID

from libs.trading.broker.address import broker_address
from libs.trading.broker.client import Broker
from libs.trading.broker.errors import BrokerConfigError
from libs.trading.panic.alarm import FIRST_AFTER_S, Alarm, begun_key, ended_key, webhook
from libs.trading.panic.dry_run import dry_run
from libs.trading.panic.exit import PanicExit
from libs.trading.panic.ground import Patience, SystemClock, Voice
from libs.trading.panic.opening import Place
from libs.trading.panic.record import Request

_ALARM_S = 4.5

T = TypeVar("T")


def run_exit(
    place: Place,
    exit_id: UUID,
    *,
    reason: str,
    ttl_minutes: int,
    voice: Voice,
    tell: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Exit and give the answer to `tell` the moment it is known; the webhook gets a few seconds more after that."""
    alarm = Alarm(webhook(os.environ))
    where = f"{os.environ.get('BROKER') or 'paper'} broker, from {socket.gethostname()}"
    alarm.tell(begun_key(str(exit_id)), f"Panic exit begun ({reason}): {where}.", after_s=FIRST_AFTER_S)
    request = Request(exit_id, reason, ttl_minutes)
    answer = _complete(_run(place, request, voice))
    tell(answer)
    place.let_go()
    _say_end(answer, voice)
    alarm.tell(ended_key(str(exit_id)), f"Panic exit {_sentence(answer)} ({reason}): {where}.")
    alarm.wait(_ALARM_S)
    _note_alarm(place, exit_id, alarm, voice)
    voice.flush()
    return answer


def run_dry(exit_id: UUID, *, reason: str, ttl_minutes: int) -> dict[str, Any]:
    """List what an exit would do."""
    request = Request(exit_id, reason, ttl_minutes)

    async def read() -> dict[str, Any]:
        async with Broker(broker_address(os.environ)) as broker:
            return await dry_run(request, broker)

    try:
        return _complete(read())
    except BrokerConfigError as error:
        return _failed(request, [str(error)], halted_until=None)


def _complete(work: Coroutine[Any, Any, T]) -> T:
    """Not `asyncio.run`, which at its end waits for threads, and with them for a name that nobody resolves."""
    return asyncio.new_event_loop().run_until_complete(work)


async def _run(place: Place, request: Request, voice: Voice) -> dict[str, Any]:
    patience, trouble = _patience(os.environ)
    if trouble:
        place.troubles["limit"] = trouble
    try:
        address = broker_address(os.environ)
    except BrokerConfigError as error:
        return _without_broker(place, request, str(error))
    panic_exit = PanicExit(
        request,
        broker=Broker(address),  # never closed: a connection that hangs must not hold up the answer
        clock=SystemClock(),
        journal=place.journal,
        halt_file=place.halt_file,
        entry_lock=place.entry_lock,
        disk=place.disk,
        patience=patience,
        say=voice.say,
        troubles=place.troubles,
        halted=place.halted,
    )
    return await panic_exit.run()


def _without_broker(place: Place, request: Request, trouble: str) -> dict[str, Any]:
    """Entries are stopped, but the environment names no broker to speak to."""
    try:
        standing = place.disk.wait(place.halt_file.read)
    except OSError:
        standing = None
    until = None if standing is None else standing.halted_until.isoformat()
    answer = _failed(request, [trouble, *place.troubles.values()], halted_until=until)
    said = {
        "reason": request.reason,
        "ttl_minutes": request.ttl_minutes,
        "halted_until": until,
        "dry_run": False,
    }
    try:
        place.disk.wait(lambda: place.journal.append(request.exit_id, "begun", said))
        place.disk.wait(lambda: place.journal.append(request.exit_id, "ended", answer))
    except OSError as error:
        answer["failures"].append(f"the journal could not be written: {error}")
    return answer


def _patience(environment: Mapping[str, str]) -> tuple[Patience, str]:
    """The overall limit of `PANIC_LIMIT_S`. One that cannot be read must not stop an exit: the default holds."""
    said = environment.get("PANIC_LIMIT_S", "").strip()
    if not said:
        return Patience(), ""
    try:
        limit = float(said)
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        return Patience(), f"PANIC_LIMIT_S={said!r} is not a number of seconds; the default held"
    return Patience(overall_s=limit), ""


def _failed(request: Request, failures: list[str], *, halted_until: str | None) -> dict[str, Any]:
    return {
        "ok": False,
        "exit_id": str(request.exit_id),
        "state": "FAILED",
        "positions_closed": 0,
        "orders_cancelled": 0,
        "failures": failures,
        "ttl_minutes": request.ttl_minutes,
        "halted_until": halted_until,
    }


def _say_end(answer: Mapping[str, Any], voice: Voice) -> None:
    voice.say(_sentence(answer))
    for failure in answer["failures"]:
        voice.say(f"  {failure}")


def _sentence(answer: Mapping[str, Any]) -> str:
    return (
        f"{answer['state']}: {answer['positions_closed']} positions closed, {answer['orders_cancelled']} orders "
        f"cancelled, {len(answer['failures'])} failures; no re-arm before {answer['halted_until']}"
    )


def _note_alarm(place: Place, exit_id: UUID, alarm: Alarm, voice: Voice) -> None:
    if alarm.failed:
        voice.say(f"the webhook was not told: {', '.join(alarm.failed)}")
    if not alarm.told and not alarm.failed:
        return
    try:
        place.disk.wait(lambda: place.journal.append(exit_id, "alerted", {"told": alarm.told, "failed": alarm.failed}))
    except OSError as error:
        voice.say(f"the journal cannot be written ({error})")
