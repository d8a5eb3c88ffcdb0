"""The prompts: what is in force and by whose word, experiments, two versions side by side, and changing it.

The address of a prompt's page holds which versions are compared, so it can be sent on.
"""

import re
from collections.abc import Sequence
from urllib.parse import quote

from nicegui import ui
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request

from libs.llm.errors import LLMError
from libs.llm.in_force import Activation
from services.analytics.console.layout.addresses import address, moment_of
from services.analytics.console.layout.frame import Console, Visitor, keep_fresh, page_frame, visitor_of
from services.analytics.console.layout.parts import Link, Part, facts, heading, note, shown, table
from services.analytics.console.pages.prompts import words
from services.analytics.console.pages.prompts.changes import ChangeForm
from services.analytics.console.pages.prompts.course import Courses, found_course
from services.analytics.console.pages.prompts.queries import (
    Standing,
    Standings,
    Story,
    activations_of,
    standings,
    story_of,
    texts_of,
)
from services.analytics.console.pages.prompts.texts import side_by_side

PATH = "/prompts"
KEY = re.compile(r"[A-Za-z0-9_.-]{1,64}")
AWAY = (SQLAlchemyError, OSError)
EVERY_S = 5.0
STORY_EVERY_S = 60.0
FOLLOWED_EVERY_S = 1.0
FOLLOWED_LOOKS = 10
"""How often it is looked whether the api goes by what was just changed, which takes seconds."""
FOLLOWING = "This was just changed and takes effect within seconds. What stands here is from before."
LIST = ("prompt", "in force", "since", "by whose word", "experiment", "versions")
VERSIONS = ("version", "state", "share of units", "released", "hash")
NO_ADMIN = "Your key lacks the scope admin, which the words of prompts and reports on experiments ask for."


def add(console: Console) -> None:
    """Register the two pages."""

    @ui.page(PATH)
    def page(request: Request) -> None:  # pyright: ignore[reportUnusedFunction]
        visitor = visitor_of(request)
        with page_frame(visitor, title="Prompts", here=PATH):
            part = Part(_list)

        async def look() -> None:
            part.show(await standings(console, visitor.session))

        keep_fresh(console, visitor, look, every_s=EVERY_S)

    @ui.page(f"{PATH}/{{key}}")
    def one(request: Request, key: str, old: str = "", new: str = "") -> None:  # pyright: ignore[reportUnusedFunction]
        visitor = visitor_of(request)
        if KEY.fullmatch(key) is None:
            with page_frame(visitor, title="Prompt", here=PATH):
                note("There is no such prompt.")
            return
        with page_frame(visitor, title=f"Prompt {key}", here=PATH), ui.element("div").classes("lexi-wide"):
            _Page(console, visitor, key, old=old[:64], new=new[:64]).made()


class _Page:
    """The page of one key."""

    def __init__(self, console: Console, visitor: Visitor, key: str, *, old: str, new: str) -> None:
        self._console = console
        self._visitor = visitor
        self._key = key
        self._asked = (old, new)
        self._standing: Standing | None = None
        self._compared = False
        self._following = False

    def made(self) -> None:
        """Lay it out; what it shows is read once it stands."""
        ui.link("All prompts", PATH)
        self._head = Part(_head)
        with ui.element("div").classes("lexi-wide") as self._rest:
            self._form = ChangeForm(self._console, self._visitor, self._key, changed=self._changed)
            heading("Experiment")
            self._story = Part(_story)
            self._courses = Courses()
            heading("History")
            self._history = Part(_history)
            heading("Two versions side by side")
            self._choice = Part(self._choose)
            self._texts = Part(side_by_side)
        self._rest.set_visibility(False)
        keep_fresh(self._console, self._visitor, self._look, every_s=EVERY_S)
        keep_fresh(self._console, self._visitor, self._look_at_story, every_s=STORY_EVERY_S)

    async def _changed(self, *, done: bool) -> None:
        """Look again; after what was done, until the page shows it."""
        before, looks = self._standing, 0

        async def follow() -> None:
            nonlocal looks
            looks += 1
            await self._look()
            if self._standing != before or looks >= FOLLOWED_LOOKS:
                timer.cancel()
                self._following = False
                await self._look()
                await self._look_at_story()

        self._following = done
        await self._look()
        if done:
            timer = ui.timer(FOLLOWED_EVERY_S, follow)

    async def _look(self) -> None:
        found = await standings(self._console, self._visitor.session)
        self._standing = found.of(self._key)
        self._head.show((self._standing, found.problem, self._following))
        self._rest.set_visibility(self._standing is not None or not found.keys)
        if self._standing is not None:
            self._form.show(self._standing)
            await self._compare(self._standing)
        try:
            self._history.show(await activations_of(self._console, self._key))
        except AWAY as error:
            self._history.show(f"Postgres does not answer ({type(error).__name__}).")

    async def _look_at_story(self) -> None:
        standing = self._standing or (await standings(self._console, self._visitor.session)).of(self._key)
        if not self._visitor.session.may("admin"):
            self._story.show(Story(None, problem=NO_ADMIN))
        elif standing is not None:
            self._story.show(await self._story_now(standing))
            self._courses.show(await found_course(self._console, standing))

    async def _story_now(self, standing: Standing) -> Story:
        try:
            return await story_of(self._console, self._visitor.session, standing)
        except AWAY as error:
            return Story(None, problem=f"Postgres does not answer ({type(error).__name__}).")

    async def _compare(self, standing: Standing) -> None:
        """Once: what the address asks for, else the version in force and the newest."""
        if self._compared:
            return
        self._compared = True
        if not self._visitor.session.may("admin"):
            self._choice.show(None)
            self._texts.show(NO_ADMIN)
            return
        numbers = [one.number for one in standing.versions]
        old, new = self._asked
        pair = (old if old in numbers else standing.active, new if new in numbers else numbers[-1])
        self._choice.show((numbers, pair))
        try:
            self._texts.show(await texts_of(self._key, *pair))
        except LLMError as error:
            self._texts.show(f"The texts cannot be shown: {error}")

    def _choose(self, shown_now: tuple[Sequence[str], tuple[str, str]] | None) -> None:
        if shown_now is None:
            return
        numbers, (old, new) = shown_now
        with ui.row().classes("items-end gap-x-4"):
            first = ui.select(list(numbers), label="This version", value=old).classes("w-40")
            second = ui.select(list(numbers), label="Beside this one", value=new).classes("w-40")

            def go() -> None:
                ui.navigate.to(address(_path(self._key), {"old": first.value, "new": second.value}))

            ui.button("Compare", on_click=go).props("outline no-caps")


def _path(key: str) -> str:
    return f"{PATH}/{quote(key, safe='')}"


def _list(found: Standings) -> None:
    if found.problem:
        note(found.problem, tone="bad")
    for warning in [warning for one in found.keys for warning in one.warnings]:
        note(warning, tone="note")
    if found.keys:
        rows = [
            (
                Link(one.key, _path(one.key)),
                _active(one),
                one.since,
                one.by if one.certain else "not known",
                one.arms,
                len(one.versions),
            )
            for one in found.keys
        ]
        table(LIST, rows, label="Prompts and what is in force")


def _active(standing: Standing) -> str:
    return standing.active if standing.certain else f"not known; {standing.active} by the file"


def _head(found: tuple[Standing | None, str, bool]) -> None:
    standing, problem, following = found
    if following:
        note(FOLLOWING, tone="note")
    if problem:
        note(problem, tone="bad")
    if standing is None:
        note("There is no such prompt.")
        return
    for warning in standing.warnings:
        note(warning, tone="note")
    facts(
        [
            ("in force" if standing.certain else "by the file", standing.active),
            ("by whose word", standing.by if standing.certain else "not known"),
            ("since", standing.since),
            ("experiment", f"{standing.arms} ({standing.phase})" if standing.phase else _none(standing)),
        ]
    )
    with ui.element("div").classes("lexi-numbers"):
        table(VERSIONS, [_version(standing, number) for number in range(len(standing.versions))], label="Versions")


def _none(standing: Standing) -> str:
    return "none runs" if standing.certain else "not known"


def _version(standing: Standing, place: int) -> tuple[object, ...]:
    one = standing.versions[place]
    in_force = "in force" if standing.certain else "in force by the file"
    state = in_force if one.number == standing.active else "on trial" if one.share else "draft"
    if state == "draft" and one.released_at is not None:
        state = "released"
    share = f"{one.share:.4g} %" if one.share else ""
    return one.number, state, share, one.released_at, one.hash[:12]


def _story(story: Story) -> None:
    report = story.report
    if report is None:
        note(story.problem)
        return
    if story.problem:
        note(f"This was made before: {story.problem}", tone="bad")
    if story.ended:
        note(story.ended, tone="note")
    note(report["sentence"], tone="ink")
    made = "just now" if story.made_at is None else f"at {shown(story.made_at)}"
    facts(
        [
            ("verdict", words.verdict_words(report)),
            ("phase", f"{report['phase']}, {'ended' if story.ended else report['state']}"),
            ("drawn by", report["unit"].replace("_", " and ")),
            ("since", moment_of(report["since"] or "")),
            ("made", made),
        ]
    )
    for tone, line in words.ratio_lines(report):
        note(line, tone=tone)
    with ui.element("div").classes("lexi-numbers"):
        table(words.ARMS, words.arm_rows(report), label="Arms of the experiment")
    heading("Metrics", level=3)
    with ui.element("div").classes("lexi-words"):
        table(words.METRICS, words.metric_rows(report), label="Metrics by arm, with intervals")
    heading("Guardrails", level=3)
    if report["guardrails"]:
        with ui.element("div").classes("lexi-words"):
            table(words.GUARDRAILS, words.guardrail_rows(report), label="Guardrails")
    else:
        note("None has anything to judge yet, or none is set.")


def _history(rows: Sequence[Activation] | str) -> None:
    if isinstance(rows, str):
        note(rows, tone="bad")
    elif not rows:
        note("Nothing was ever promoted, ramped or rolled back: the file and the environment rule.")
    else:
        with ui.element("div").classes("lexi-words"):
            table(words.HISTORY, words.history_rows(rows), label="Activations, newest first")
