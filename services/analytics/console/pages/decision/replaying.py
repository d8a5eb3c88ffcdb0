"""Asking a call again from a page, and what differs then. A replay changes nothing of what it replays."""

from collections.abc import Mapping, Sequence
from typing import Any, cast
from uuid import UUID

from nicegui import ui

from services.analytics.console.door.guard import SIGN_IN
from services.analytics.console.door.sessions import Session
from services.analytics.console.house import Told
from services.analytics.console.layout.addresses import uuid_of
from services.analytics.console.layout.frame import Console, Visitor
from services.analytics.console.layout.parts import code, heading, note, table
from services.analytics.console.presses import outcome_of, record

LIMIT_S = 90.0
"""A slow model on few cores takes its time, behind everything that is more urgent."""
NO_ADMIN = "Your key lacks the scope admin, which prompts as sent and replays ask for."


async def replay(console: Console, session: Session, call_id: UUID, *, force: bool, version: str | None) -> Told:
    """Have the api replay a call in the name of a session; the press is kept."""
    asked: dict[str, Any] = {"id": str(call_id), "force": force}
    if version is not None:
        asked["version"] = version
    told = await console.house.post("/llm/admin/replay", session, asked, limit_s=LIMIT_S)
    how = manner(force=force, version=version)
    outcome = outcome_of(told)
    await record(console.engine, session, action="replay", subject=str(call_id), reason=how, outcome=outcome)
    return told


def manner(*, force: bool, version: str | None) -> str:
    """How a call is replayed, in words."""
    if version is not None:
        return f"through version {version}" + (", asked anew" if force else "")
    return "asked again" if force else "as recorded"


def summary(answer: Mapping[str, Any]) -> str:
    """A replay in a sentence or two."""
    said = "The model was not called" if answer["cached"] else "The model was called"
    which = f"{said}; version {answer['prompt_version']}."
    if not answer["success"]:
        return f"{which} There is no sound answer: {answer['error']}"
    if not any(answer["diff"].values()):
        return f"{which} Nothing differs from the original."
    return f"{which} {decided(answer) or 'It differs as shown below.'}"


def decided(answer: Mapping[str, Any]) -> str:
    """What was decided before and is now, as the replies were read; empty where the prompt decides nothing."""
    turned = cast("Mapping[str, Any] | None", answer["diff"].get("decision"))
    if turned is not None:
        before, after = (_allows(turned[side]) for side in ("before", "after"))
        same = "the same, for other reasons or with other flags" if before == after else "the decision turned"
        return f"{before.capitalize()} before, {after} now: {same}."
    now: object = answer["json"]
    allow = cast("Mapping[str, Any]", now).get("allow") if isinstance(now, Mapping) else None
    if not isinstance(allow, bool):
        return ""
    said = "allow" if allow else "deny"
    return f"{said.capitalize()} before, {said} now: the same decision in other words."


def _allows(block: Mapping[str, Any] | None) -> str:
    if block is None:
        return "no decision"
    return "allow" if block["allow"] else "deny"


def changes(diff: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What changed beside the text: name, before, after."""
    found: list[tuple[str, str, str]] = []
    if diff.get("verdict"):
        found.append(("verdict with the rules", *_pair(diff["verdict"]["before"], diff["verdict"]["after"])))
    if diff.get("decision"):
        found.append(("decision", *_pair(_decision(diff["decision"]["before"]), _decision(diff["decision"]["after"]))))
    fields: Mapping[str, Sequence[Any]] = diff.get("json") or {}
    found += [(name, *_pair(*pair)) for name, pair in fields.items()]
    return found


def _decision(block: Mapping[str, Any] | None) -> str:
    if block is None:
        return "none"
    return ", ".join([_allows(block), *map(str, (*block["reasons"], *block["flags"]))])


def _pair(before: Any, after: Any) -> tuple[str, str]:
    first, second = ("not known" if each is None else str(each) for each in (before, after))
    return first, second


class Replaying:
    """The buttons for one call, and what the last of them brought."""

    def __init__(self, console: Console, visitor: Visitor, *, key: str, block: Mapping[str, Any]) -> None:
        """`block` is what a forecast's record keeps of the call."""
        self._console = console
        self._visitor = visitor
        self._key = key
        self._call_id = uuid_of(block.get("call_id") or "")
        self._made_with = block.get("prompt_version")
        self._buttons: list[ui.button] = []

    def shown(self) -> None:
        """Build them. Where nothing was asked there is nothing to ask again; without the scope they are disabled."""
        heading(f"The {self._key}", level=3)
        if self._call_id is None:
            note(f"The {self._key} was not asked, so there is nothing to replay.")
            return
        may = self._visitor.session.may("admin")
        with ui.row().classes("items-end gap-x-4 gap-y-2").props(f'role="group" aria-label="Replay the {self._key}"'):
            self._button("As recorded", self._recorded)
            self._button("Ask the model again", self._again)
            self._version = ui.select([], label=f"Version of the {self._key}").classes("w-48")
            self._anew = ui.checkbox("Even if it was asked before")
            self._through = self._button("Through this version", self._other)
        self._through.disable()
        self._version.disable()
        self._about = ui.label("").classes("lexi-muted")
        self._result = ui.element("div").classes("lexi-result").props('role="status"')
        if may:
            ui.timer(0.05, self._list_versions, once=True)
            return
        for control in (*self._buttons, self._anew):
            control.disable()
        self._about.set_text(NO_ADMIN)

    def _button(self, words: str, press: Any) -> ui.button:
        button = ui.button(words, on_click=press).props("outline no-caps")
        self._buttons.append(button)
        return button

    async def _list_versions(self) -> None:
        """The versions there are, once the page stands: only the api knows them."""
        told = await self._console.house.get(f"/llm/admin/prompts/{self._key}", self._visitor.session)
        if not told.good:
            self._about.set_text(f"The versions cannot be listed: {told.problem}")
            return
        versions = [str(version) for version in told.content["versions"]]
        other = next((version for version in versions if version != self._made_with), self._made_with)
        self._version.set_options(versions, value=other)  # pyright: ignore[reportUnknownMemberType] - untyped there
        self._version.enable()
        self._through.enable()

    async def _recorded(self) -> None:
        await self._press(force=False, version=None)

    async def _again(self) -> None:
        await self._press(force=True, version=None)

    async def _other(self) -> None:
        if self._version.value is not None:
            await self._press(force=bool(self._anew.value), version=str(self._version.value))

    async def _press(self, *, force: bool, version: str | None) -> None:
        session = self._console.sessions.find(self._visitor.cookie)
        if session is None or self._call_id is None:
            ui.navigate.to(SIGN_IN)
            return
        enabled = [button for button in self._buttons if button.enabled]
        for button in enabled:
            button.disable()
        self._result.clear()
        with self._result:
            ui.label("Asking\N{HORIZONTAL ELLIPSIS}").classes("lexi-muted")
        try:
            told = await replay(self._console, session, self._call_id, force=force, version=version)
        finally:
            for button in enabled:
                button.enable()
        self._result.clear()
        with self._result:
            _shown(told, manner(force=force, version=version))


def _shown(told: Told, how: str) -> None:
    """What a replay brought."""
    if not told.good:
        note(f"Not replayed ({how}): {told.problem}", tone="bad")
        return
    answer: Mapping[str, Any] = told.content
    note(f"{how.capitalize()}. {summary(answer)}", tone="plain" if answer["success"] else "bad")
    rows = changes(answer["diff"])
    if rows:
        table(("what", "before", "after"), rows, label="What changed")
    if answer["diff"].get("text"):
        with (
            ui.element("div")
            .classes("lexi-card")
            .props('role="group" aria-label="Difference of the texts" tabindex="0"')
        ):
            for line in answer["diff"]["text"]:
                tone = {"+": "good", "-": "bad"}.get(str(line)[:1], "muted")
                ui.label(str(line)).classes(f"lexi-mono lexi-{tone}")
    else:
        code(str(answer["text"]), name="reply of the replay")
