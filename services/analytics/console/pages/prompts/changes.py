"""Promote, ramp and roll back from the page: a form, a second question, a call of the api, and a row of the press."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias
from urllib.parse import quote

from nicegui import ui

from libs.llm.commands.plans import STEPS
from services.analytics.console.door.guard import SIGN_IN
from services.analytics.console.door.sessions import Session
from services.analytics.console.house import Told
from services.analytics.console.layout.confirmation import LONGEST_REASON, Confirmation
from services.analytics.console.layout.frame import Console, Visitor
from services.analytics.console.layout.parts import heading
from services.analytics.console.pages.prompts.foreseen import in_the_console, refusal
from services.analytics.console.pages.prompts.queries import PROMPTS, Standing
from services.analytics.console.presses import outcome_of, record

Way: TypeAlias = Literal["promote", "ramp", "rollback"]

NO_ADMIN = "Your key lacks the scope admin, so you cannot change this."
WHY = "A reason stands in for a replay or an evaluation that is missing: leave it empty to be told what is."
LIMIT_S = 20.0


class Changed(Protocol):
    """Told of an answer, and whether something was `done`."""

    async def __call__(self, *, done: bool) -> None:
        """Look again."""
        ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """A change as the form has it."""

    way: Way
    key: str
    version: str = ""
    percent: int = 0
    reason: str = ""
    further: bool = False

    def body(self, operator: str) -> dict[str, Any]:
        """What the api is sent."""
        own: Mapping[Way, dict[str, Any]] = {
            "promote": {"version": self.version},
            "ramp": {"version": self.version, "percent": self.percent},
            "rollback": {"further": self.further},
        }
        return {"operator": operator, "reason": self.reason, **own[self.way]}

    @property
    def subject(self) -> str:
        """What is changed, for the record."""
        said: Mapping[Way, str] = {
            "promote": f"{self.key} {self.version}",
            "ramp": f"{self.key} {self.version} to {self.percent} %",
            "rollback": f"{self.key}, one more step" if self.further else self.key,
        }
        return said[self.way]

    def amiss(self) -> str:
        """What is wrong with the form, empty where nothing is."""
        if self.way != "rollback" and not self.version:
            return "Nothing was done: choose a version."
        if self.way == "rollback" and not self.reason:
            return "Nothing was done: say why it goes back."
        return ""

    def question(self, standing: Standing) -> tuple[str, str]:
        """What is asked before it is done."""
        now = f"In force now: {standing.active}" + (f", experiment {standing.arms}." if standing.phase else ".")
        if not standing.certain:
            now = "What is in force is not known here."
        if self.way == "promote":
            ends = " The experiment ends." if standing.phase else ""
            return f"Give every unit {self.key} {self.version}?", f"{now}{ends}"
        if self.way == "ramp":
            rest = f"The rest stays with {standing.active}."
            return f"Give {self.percent} % of the units {self.key} {self.version}?", f"{now} {rest}"
        if standing.phase:
            return f"End the experiment of {self.key}?", f"{now} {standing.active} answers everything then."
        return f"Take {self.key} {standing.active} back?", f"{now} The version before the last promotion answers then."


async def change(console: Console, session: Session, wanted: Wanted) -> Told:
    """Have the api do it in the name of a session, and keep the press."""
    path = f"{PROMPTS}/{quote(wanted.key, safe='')}/{wanted.way}"
    told = await console.house.post(path, session, wanted.body(session.name), limit_s=LIMIT_S)
    outcome = outcome_of(told)
    if told.good and not told.content["changed"]:
        outcome = f"{told.status} nothing to do"
    await record(
        console.engine, session, action=wanted.way, subject=wanted.subject, reason=wanted.reason, outcome=outcome
    )
    return told


def answered(told: Told) -> str:
    """What the api said, for whoever pressed."""
    if told.good:
        return in_the_console("\n".join(told.content["said"]))
    if told.status == 0:
        return f"It is not known whether this was done: {told.problem}. Look at the history below before you go on."
    return f"Nothing was done: {in_the_console(told.problem)}"


class ChangeForm:
    """The form of one key. `changed` is called after every answer, so that the page looks again."""

    def __init__(self, console: Console, visitor: Visitor, key: str, *, changed: Changed) -> None:
        self._console = console
        self._visitor = visitor
        self._key = key
        self._changed = changed
        self._standing: Standing | None = None
        self._numbers: Sequence[str] = ()
        may = visitor.session.may("admin")
        with ui.element("section").classes("lexi-card lexi-switch").props('aria-label="Change what is in force"'):
            heading("Change what is in force")
            with ui.row().classes("items-end gap-x-4 w-full"):
                self._version = ui.select([], label="Version").classes("w-32")
                percents = {step: f"{step} %" for step in STEPS}
                self._percent = ui.select(percents, label="Share to ramp to", value=STEPS[0]).classes("w-40")
                self._reason = ui.input("Why").props(f"maxlength={LONGEST_REASON}").classes("grow")
            ui.label(WHY).classes("lexi-muted lexi-text")
            with ui.row().classes("items-center gap-x-4"):
                self._buttons = [
                    self._button("promote", "Promote to every unit"),
                    self._button("ramp", "Ramp to the share"),
                    self._button("rollback", "Roll back"),
                ]
                self._further = ui.checkbox("one more step where it went back already")
            self._said = (
                ui.label("" if may else NO_ADMIN).classes("lexi-text").props('role="status" aria-live="polite"')
            )
        self._confirmation = Confirmation()
        self._allow()

    def show(self, standing: Standing) -> None:
        """Take the versions that there are, and what the questions speak of."""
        self._standing = standing
        numbers = [one.number for one in standing.versions if one.released_at is not None]
        if numbers != self._numbers:
            chosen, self._numbers = self._version.value, numbers
            self._version.set_options(numbers, value=chosen if chosen in numbers else None)  # pyright: ignore[reportUnknownMemberType] - its types are not whole
        self._allow()

    def _allow(self) -> None:
        allowed = self._visitor.session.may("admin") and self._standing is not None
        for element in (self._version, self._percent, self._reason, self._further, *self._buttons):
            element.set_enabled(allowed)

    def _button(self, way: Way, words: str) -> ui.button:
        async def pressed() -> None:
            await self._pressed(way)

        return ui.button(words, on_click=pressed).props("outline no-caps")

    def _wanted(self, way: Way) -> Wanted:
        return Wanted(
            way,
            self._key,
            version=self._version.value or "",
            percent=int(self._percent.value or 0),
            reason=(self._reason.value or "").strip(),
            further=bool(self._further.value),
        )

    async def _pressed(self, way: Way) -> None:
        standing, wanted = self._standing, self._wanted(way)
        amiss = wanted.amiss() or await self._refused(wanted)
        if standing is None or amiss:
            self._said.set_text(amiss)
            return
        if not await self._confirmation.given(*wanted.question(standing)):
            self._said.set_text("Nothing was done.")
            return
        session = self._console.sessions.find(self._visitor.cookie)
        if session is None:
            ui.navigate.to(SIGN_IN)
            return
        told = await change(self._console, session, wanted)
        self._said.set_text(answered(told))
        if told.good:
            self._reason.set_value("")
            self._further.set_value(False)
        await self._changed(done=told.good and bool(told.content["changed"]))

    async def _refused(self, wanted: Wanted) -> str:
        """What the api would say no to, where that is known before anybody is asked a second time."""
        if wanted.way == "rollback" or wanted.reason:
            return ""
        percent = wanted.percent if wanted.way == "ramp" else None
        found = await refusal(self._console.engine, self._key, wanted.version, percent=percent)
        return f"Nothing was done: {found}" if found else ""
