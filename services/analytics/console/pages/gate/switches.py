"""The two switches of the gate: where they stand, and forms to turn them in the name of who is signed in.

Whatever permits more asks a second time. A press goes to the api and is kept, with why and what came of it.
"""

from dataclasses import dataclass

from nicegui import ui

from libs.switches import LONGEST_MINUTES, USUAL_MINUTES, Standing, Switch
from services.analytics.console.door.guard import SIGN_IN
from services.analytics.console.house import Told
from services.analytics.console.layout.confirmation import LONGEST_REASON, Confirmation
from services.analytics.console.layout.frame import Console, Visitor
from services.analytics.console.layout.parts import heading
from services.analytics.console.presses import outcome_of, record

NO_SWITCH = "Your key lacks the scope switch, so you cannot turn this."


@dataclass(frozen=True, slots=True)
class Way:
    """One way to turn a switch. `confirm` is asked before one that permits more, empty for what permits less."""

    value: bool
    button: str
    state: str
    tone: str
    confirm: str = ""


@dataclass(frozen=True, slots=True)
class Turnable:
    """A switch as people know it; `lasting` names the value that holds for some minutes only."""

    name: Switch
    title: str
    ways: tuple[Way, Way]
    lasting: bool | None = None

    def way(self, value: bool) -> Way:
        """The way that leads to a value."""
        return next(way for way in self.ways if way.value == value)


LET_THROUGH = "Limits, duplicates and the halt still hold."
POLICY = Turnable(
    "LLM_SHADOW_MODE",
    "Policy",
    (
        Way(False, "Enforce", "enforce: what the policy denies is refused", "good"),
        Way(
            True,
            "Go to shadow",
            "shadow: verdicts of the policy are only logged",
            "note",
            f"Entries that the policy denies will be let through and only logged. {LET_THROUGH}",
        ),
    ),
)
KILL = Turnable(
    "ORDER_GATE_DISABLED",
    "Kill switch",
    (
        Way(False, "Turn it off", "off: the policy is asked", "good"),
        Way(
            True,
            "Turn it on",
            "on: the policy counts as allow",
            "bad",
            f"The policy will count as allow for every entry, also where it enforces. {LET_THROUGH}",
        ),
    ),
    lasting=True,
)
SWITCHES = (POLICY, KILL)


async def turn(
    console: Console, visitor: Visitor, switch: Turnable, *, value: bool, reason: str, minutes: int | None
) -> Told:
    """Have the api turn a switch, and keep the press."""
    asked: dict[str, object] = {"name": switch.name, "value": value, "operator": visitor.session.name, "reason": reason}
    lasts = minutes if value == switch.lasting else None
    if lasts is not None:
        asked["minutes"] = lasts
    told = await console.house.post("/strategist/switches", visitor.session, asked)
    subject = f"{switch.name}={str(value).lower()}" + ("" if lasts is None else f" for {lasts} minutes")
    await record(
        console.engine, visitor.session, action="switch", outcome=outcome_of(told), subject=subject, reason=reason
    )
    return told


def amiss(reason: str, minutes: object) -> str:
    """What is wrong with a form, empty where nothing is. `minutes` is None where it has none."""
    if not reason.strip():
        return "Nothing was done: say why."
    if minutes is None or (isinstance(minutes, int | float) and minutes in range(1, LONGEST_MINUTES + 1)):
        return ""
    return f"Nothing was done: it is turned on for 1 to {LONGEST_MINUTES} whole minutes."


class SwitchCard:
    """One switch on the page: how it stands, who set it so and why, and the form."""

    def __init__(self, console: Console, visitor: Visitor, switch: Turnable) -> None:
        self._console = console
        self._visitor = visitor
        self._switch = switch
        self._stands: bool | None = None
        with ui.element("section").classes("lexi-card lexi-switch").props(f'aria-label="{switch.title}"'):
            heading(switch.title)
            self._state = ui.label("not looked at yet").props('role="status"')
            self._who = ui.label().classes("lexi-muted lexi-text")
            self._form()
        self._confirmation = Confirmation()

    def show(self, stand: Standing) -> None:
        """Show where it stands."""
        way = self._switch.way(stand.value)
        self._state.set_text(way.state)
        self._state.classes(replace=f"lexi-{way.tone} lexi-state")
        self._who.set_text(who(stand))
        self._stands = stand.value
        self._allow()

    def _form(self) -> None:
        with ui.row().classes("items-end gap-x-4 w-full"):
            self._reason = ui.input("Why").props(f"maxlength={LONGEST_REASON}").classes("grow")
            self._minutes = None
            if self._switch.lasting is not None:
                self._minutes = ui.number("Minutes on", value=USUAL_MINUTES, min=1, max=LONGEST_MINUTES, precision=0)
                self._minutes.classes("lexi-minutes")
        with ui.row().classes("gap-x-4"):
            self._buttons = {way.value: self._button(way) for way in self._switch.ways}
        self._lacks = ui.label(NO_SWITCH).classes("lexi-muted lexi-text")
        self._said = ui.label().classes("lexi-text").props('role="status" aria-live="polite"')
        self._allow()

    def _button(self, way: Way) -> ui.button:
        async def pressed() -> None:
            await self._pressed(way)

        label = f"{self._switch.title}: {way.button}"
        return ui.button(way.button, on_click=pressed).props(f'outline no-caps aria-label="{label}"')

    def _allow(self) -> None:
        """Only what changes something can be pressed. A kill switch that is on may be turned on for longer."""
        may = self._visitor.session.may("switch")
        self._lacks.set_visibility(not may)
        for element in (self._reason, self._minutes):
            if element is not None:
                element.set_enabled(may)
        for value, button in self._buttons.items():
            button.set_enabled(may and (value != self._stands or value == self._switch.lasting))

    async def _pressed(self, way: Way) -> None:
        reason = (self._reason.value or "").strip()
        minutes = None if self._minutes is None or way.value != self._switch.lasting else self._minutes.value or 0
        problem = amiss(reason, minutes)
        if problem:
            self._said.set_text(problem)
            return
        lasts = None if minutes is None else int(minutes)
        if way.confirm and not await self._confirmation.given(*self._question(way, lasts)):
            self._said.set_text("Nothing was done.")
            return
        if self._console.sessions.find(self._visitor.cookie) is None:
            ui.navigate.to(SIGN_IN)
            return
        self._said.set_text("Pressed\N{HORIZONTAL ELLIPSIS}")
        told = await turn(self._console, self._visitor, self._switch, value=way.value, reason=reason, minutes=lasts)
        if told.status:
            self._console.live.heard()
        self._said.set_text(answered(told))
        if told.good:
            self._reason.set_value("")

    def _question(self, way: Way, minutes: int | None) -> tuple[str, str]:
        lasts = "" if minutes is None else f" for {minutes} minutes"
        return f"{self._switch.title}: {way.button.lower()}{lasts}?", way.confirm


def answered(told: Told) -> str:
    """What came of a press, for whoever pressed."""
    if told.status == 0:
        return f"It is not known whether this was done: {told.problem}. Look at where it stands before you go on."
    return "Done." if told.good else f"Nothing was done: {told.problem}."


def who(stand: Standing) -> str:
    """Who set a switch so, when, why, and until when."""
    at = "" if stand.set_at is None else f" at {stand.set_at:%Y-%m-%d %H:%M:%S} UTC"
    until = "" if stand.expires_at is None else f", until {stand.expires_at:%H:%M:%S} UTC"
    return f"by {stand.set_by}{at}{until}: {stand.reason}"
