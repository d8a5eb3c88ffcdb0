"""The panic exit as a process: the real broker, clock and disk around it, and the webhook told of it."""

import asyncio
import math
import os
import re
import socket
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

from libs.trading.broker.address import broker_address
from libs.trading.broker.client import Broker
from libs.trading.broker.errors import BrokerConfigError
from libs.trading.halt import DEFAULT_TTL_MINUTES, new_halt
from libs.trading.panic.alarm import FIRST_AFTER_S, Alarm, begun_key, ended_key, webhook
from libs.trading.panic.dry_run import dry_run
from libs.trading.panic.exit import PanicExit
from libs.trading.panic.ground import Patience, SystemClock, Voice
from libs.trading.panic.opening import Place
from libs.trading.panic.record import Opened, Request

_ALARM_S = 2.5
_PASSWORD = re.compile(r"//[^/@\s]*@")

T = TypeVar("T")


def run_exit(
    place: Place,
    exit_id: UUID,
    *,
    asks: bool,
    voice: Voice,
    tell: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Exit and give the answer to `tell` the moment it is known; the webhook gets a few seconds more after that.

    `asks` tells that somebody asks for an exit now, and for its halt: it is no mere going on with one.
    """
    alarm = Alarm(webhook(os.environ))
    wanted = place.wanted or new_halt(exit_id, "panic_exit", at=datetime.now(UTC), ttl_minutes=DEFAULT_TTL_MINUTES)
    reason, ttl_minutes = wanted.reason, wanted.ttl_minutes
    where = f"{place.broker or 'no broker'}, from {socket.gethostname()}"
    alarm.tell(begun_key(str(exit_id)), f"Panic exit begun ({reason}): {where}.", after_s=FIRST_AFTER_S)
    request = Request(exit_id, reason, ttl_minutes)
    answer = _complete(_run(place, request, voice, until=wanted.halted_until if asks else None))
    tell(answer)
    place.let_go()
    _say_end(answer, place, voice)
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


async def _run(place: Place, request: Request, voice: Voice, *, until: datetime | None) -> dict[str, Any]:
    patience, trouble = _patience(os.environ)
    if trouble:
        place.troubles["limit"] = trouble
    try:
        broker = Broker(broker_address(os.environ))  # never closed: a connection that hangs must not hold up the answer
    except BrokerConfigError as error:
        return _without_broker(place, request, str(error))
    except Exception as error:  # noqa: BLE001 - such as a proxy in the environment that httpx has no way to use
        trouble = f"no connection to the broker can be made: {type(error).__name__}: {error}"
        return _without_broker(place, request, _PASSWORD.sub("//", trouble))
    panic_exit = PanicExit(
        request,
        broker=broker,
        clock=SystemClock(),
        journal=place.journal,
        halt_file=place.halt_file,
        entry_lock=place.entry_lock,
        disk=place.disk,
        patience=patience,
        say=voice.say,
        opened=Opened(place.troubles, halted=place.halted, begun=place.begun, until=until),
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
    try:
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


def _say_end(answer: Mapping[str, Any], place: Place, voice: Voice) -> None:
    voice.say(f"{_sentence(answer)}; {place.broker or 'the environment names no broker'}")
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
