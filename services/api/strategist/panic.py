"""The panic exit, the halt and the re-arm over HTTP. The exit needs neither Postgres nor the model."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, StrictBool

from libs.json_numbers import JsonValue, Number
from libs.keys import Guard, GuardedRoute, Key, require
from libs.problems import BadGateway, Conflict, Forbidden, NotFound, Unavailable
from libs.trading.journal import Entry
from libs.trading.panic.report import result_of, steps_of
from libs.trading.rearm import CannotTell, RearmRefused, rearm
from services.api.strategist.stopping.halting import HaltState, copied_entries, halt_state
from services.api.strategist.stopping.runner import NoAnswer, PanicState
from services.api.strategist.words import Words

MOST_MINUTES = 60 * 24 * 365

router = APIRouter(prefix="/strategist", route_class=GuardedRoute)

may_read, may_rearm = Depends(require("read")), Depends(require("rearm"))


def get_panic(request: Request) -> PanicState:
    """What the strategist of this process keeps for exits."""
    return request.app.state.strategist.panic


Panic = Annotated[PanicState, Depends(get_panic)]


class PanicBody(BaseModel):
    """A panic exit to run. `ttl_minutes`: the earliest re-arm. `dry_run` only reads, and lists what would be done."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ttl_minutes: Annotated[int, Field(strict=True, ge=0, le=MOST_MINUTES)] = 60
    reason: Words = "panic_exit"
    dry_run: StrictBool = False


class WouldCancel(BaseModel):
    """An order that an exit would cancel."""

    id: str
    client_order_id: str
    symbol: str
    side: str
    qty: Number
    filled_qty: Number
    type: str
    limit_price: Number | None
    status: str


class WouldClose(BaseModel):
    """A position that an exit would close, and the order for it."""

    symbol: str
    side: str
    qty: Number
    current_price: Number


class PanicAnswer(BaseModel):
    """What an exit did. Only FLAT is `ok`: nothing held and nothing open, read twice, with entries stopped.

    PENDING_MARKET_OPEN: closing orders wait for the market. PARTIAL: not everything was reached. FAILED: nothing was.
    RUNNING: it goes on; ask again by `exit_id`. `halted_until` is the earliest re-arm, never an automatic end.
    """

    ok: bool
    exit_id: UUID
    state: Literal["FLAT", "PENDING_MARKET_OPEN", "PARTIAL", "FAILED", "RUNNING", "DRY_RUN"]
    positions_closed: int
    orders_cancelled: int
    failures: Sequence[str]
    ttl_minutes: int | None
    halted_until: datetime | None
    would_cancel: Sequence[WouldCancel] | None = None
    would_close: Sequence[WouldClose] | None = None


class Step(BaseModel):
    """One line of an exit's journal, written before and after each call to the broker."""

    at: datetime
    action: str
    result: JsonValue


class PanicRecord(PanicAnswer):
    """An exit with every step of it."""

    steps: Sequence[Step]


class RearmBody(BaseModel):
    """A person who lets entries pass again, and who says so in full."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    operator: Words
    reason: Words
    confirm: Literal["REARM"]


class RearmAnswer(BaseModel):
    """What was re-armed: the ids of the halts that ended, by whom, why and when, and the account that was flat."""

    ok: Literal[True] = True
    halt_ids: Sequence[UUID]
    account: str
    operator: str
    reason: str
    at: datetime


class PanicGuard(Guard):
    """Lets a key pass where panic exits over HTTP are enabled. Asked before the body is read, as every guard."""

    def key_of(self, request: Request) -> Key:
        """The key of a request that may pass."""
        key = super().key_of(request)
        if not get_panic(request).runner.enabled:
            raise Forbidden("panic exit disabled")
        return key


@router.post("/panic-exit", dependencies=[Depends(PanicGuard("panic"))], response_model_exclude_unset=True)
async def panic_exit(panic: Panic, asked: PanicBody | None = None) -> PanicAnswer:
    """Stop entries, cancel every order, close every position, and say what is true.

    It runs in a process of its own, which goes on whatever becomes of this one. A second request joins the first.
    """
    runner, asked = panic.runner, asked or PanicBody()
    run = runner.rehearse if asked.dry_run else runner.exit
    try:
        return PanicAnswer(**await run(reason=asked.reason, ttl_minutes=asked.ttl_minutes))
    except NoAnswer as error:
        raise BadGateway(str(error)) from error


@router.get("/panic-exit/{exit_id}", dependencies=[may_read], response_model_exclude_unset=True)
async def exit_record(panic: Panic, exit_id: UUID) -> PanicRecord:
    """An exit and its steps, from the journal on this disk, or else from its copy in Postgres."""
    entries = await _entries(panic, exit_id)
    if not entries:
        raise NotFound(f"there is no panic exit {exit_id}")
    said: dict[str, Any] = {**result_of(entries), "steps": steps_of(entries)}
    return PanicRecord(**said)


async def _entries(panic: PanicState, exit_id: UUID) -> Sequence[Entry]:
    try:
        found = await panic.runner.entries(exit_id)
    except OSError:  # the copy may have it where this disk cannot be read
        found = []
    return found or await copied_entries(panic.engine, exit_id)


@router.get("/halt", dependencies=[may_read])
async def halt(panic: Panic) -> HaltState:
    """Whether entries are halted, by what, and from when on they may be re-armed. Answers without Postgres too."""
    return await halt_state(panic)


@router.post("/rearm", dependencies=[may_rearm])
async def re_arm(panic: Panic, asked: RearmBody, key: Annotated[Key, may_rearm]) -> RearmAnswer:
    """Let entries pass again: after `halted_until`, with a flat broker, by a person."""
    operator = f"{asked.operator} (key {key.name})"
    try:
        done = await rearm(panic.engine, panic.broker, panic.halt_file, operator=operator, reason=asked.reason)
    except CannotTell as refused:
        raise Unavailable(str(refused)) from refused
    except RearmRefused as refused:
        raise Conflict(str(refused)) from refused
    return RearmAnswer(
        halt_ids=done.halt_ids, account=done.account, operator=done.operator, reason=done.reason, at=done.at
    )
