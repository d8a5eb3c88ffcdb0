"""What operators may turn: where the switches stand, and turning them."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, StrictBool

from libs.keys import GuardedRoute, Key, require
from libs.problems import Unprocessable
from libs.switches import LONGEST_MINUTES, Switch, SwitchError, standing, turn
from services.api.deps import Reader, Writer
from services.api.strategist.words import Words

router = APIRouter(prefix="/strategist", route_class=GuardedRoute)

may_switch = Depends(require("switch"))


class SwitchState(BaseModel):
    """Where a switch stands: who set it so, why, when, and when it ends by itself (null: it does not).

    `set_at` is null while nobody has turned it.
    """

    name: Switch
    value: bool
    set_by: str
    reason: str
    set_at: datetime | None
    expires_at: datetime | None


class Turn(BaseModel):
    """A switch to turn. `minutes` is for disabling the gate alone: 15 where left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Switch
    value: StrictBool
    operator: Words
    reason: Words
    minutes: Annotated[int | None, Field(ge=1, le=LONGEST_MINUTES)] = None


@router.get("/switches", dependencies=[Depends(require("read"))])
async def switches(reader: Reader) -> Sequence[SwitchState]:
    """Every switch as it stands now."""
    return [SwitchState(**asdict(stand)) for stand in await standing(reader)]


@router.post("/switches", dependencies=[may_switch])
async def turn_switch(writer: Writer, asked: Turn, key: Annotated[Key, may_switch]) -> SwitchState:
    """Turn a switch; it holds from the next verdict on, in every process. Answers with where it stands then."""
    try:
        stand = await turn(
            writer,
            asked.name,
            asked.value,
            operator=asked.operator,
            reason=asked.reason,
            minutes=asked.minutes,
            key_name=key.name,
        )
    except SwitchError as error:
        raise Unprocessable(str(error)) from error
    return SwitchState(**asdict(stand))
