"""The first page: what the desk depends on, and what the model just said."""

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from nicegui import ui
from starlette.requests import Request

from services.analytics.console.layout.frame import Console, Visitor, keep_fresh, page_frame, visitor_of
from services.analytics.console.layout.parts import Part, heading, note, table
from services.analytics.console.live import Line
from services.analytics.console.pages.forecasts.page import decision_page
from services.analytics.console.pages.now.queries import MOST_FORECASTS, PENDING
from services.analytics.console.reports import Made, made

ORDER = ("api", "model", "database", "broker", "feed", "gate", "halt")
MARKS = {
    "good": "\N{CHECK MARK} well",
    "note": "\N{BULLET} note",
    "bad": "\N{MULTIPLICATION X} amiss",
    "unknown": "? unknown",
}
EVERY_S = 0.5
HOUR_EVERY_S = 10.0
HELD = "New ones wait while you are in this list."
HOUR = ("prompt", "called by", "calls", "valid answers", "half within", "95 % within", "out of time")


def add(console: Console) -> None:
    """Register the page."""

    @ui.page("/")
    def now(request: Request) -> None:  # pyright: ignore[reportUnusedFunction]
        visitor = visitor_of(request)
        shown: dict[str, Any] = {}
        with page_frame(visitor, title="Now", here="/"):

            @ui.refreshable
            def lines() -> None:
                picture = console.live.picture
                with ui.element("div").classes("lexi-card").props('role="group" aria-label="State of the desk"'):
                    for name in ORDER:
                        _line(name, picture.lines.get(name))

            lines()
            # Said aloud when it changes; the lines themselves count seconds, which nobody wants read out.
            trouble = ui.label().classes("lexi-aloud").props('role="status"')
            _last_hour(console, visitor)
            heading("What it just said")
            held = ui.label().classes("lexi-muted")
            # Drawn anew it would lose the focus, so it waits for whoever goes through it by keyboard.
            box = ui.element("div").classes("lexi-part")
            box.on("focusin", lambda: held.set_text(HELD)).on("focusout", lambda: held.set_text(""))
            with box:
                none_yet, cards = Part(_none_yet), [Part(_card) for _ in range(MOST_FORECASTS)]
                for card in cards:
                    card.show(None)

        async def look() -> None:
            picture = console.live.watch()
            if picture.lines != shown.get("lines"):
                shown["lines"] = dict(picture.lines)
                lines.refresh()
                amiss = [name for name, line in picture.lines.items() if line.state == "bad"]
                trouble.set_text(", ".join(f"{name} amiss" for name in ORDER if name in amiss))
            moment = picture.moment
            if moment is not None and not held.text:
                none_yet.show(not moment.forecasts)
                for card, row in zip_longest(cards, moment.forecasts):
                    card.show(row)

        keep_fresh(console, visitor, look, every_s=EVERY_S)


def _line(name: str, line: Line | None) -> None:
    with ui.element("div").classes("lexi-line"):
        ui.label(name.capitalize())
        state = "unknown" if line is None else line.state
        ui.label(MARKS[state]).classes(f"lexi-{'muted' if state == 'unknown' else state}")
        words = "not looked at yet" if line is None else f"{line.words} ({line.when})"
        ui.label(words)


def _last_hour(console: Console, visitor: Visitor) -> None:
    heading("The last hour")
    part = Part(_hour)

    async def look() -> None:
        async with console.engine.connect() as connection:
            part.show(await made(connection, "hour"))

    keep_fresh(console, visitor, look, every_s=HOUR_EVERY_S)


def _hour(report: Made | None) -> None:
    """How the model did, by prompt."""
    if report is None:
        note("No figures yet: services.jobs makes them every minute.")
        return
    with ui.element("div").classes("lexi-card"):
        rows = [_prompt(each) for each in report.content["prompts"]]
        if rows:
            table(HOUR, rows, label="Calls of the last hour, by prompt")
        late = ", which is long ago: services.jobs does not seem to run" if report.late else ""
        words = "" if rows else "No calls. "
        ui.label(f"{words}Counted at {report.made_at:%Y-%m-%d %H:%M} UTC{late}.").classes("lexi-muted")


def _prompt(each: Mapping[str, Any]) -> tuple[object, ...]:
    valid = "\N{EN DASH}" if each["validity"] is None else f"{each['validity']:.1%}".replace("%", " %")
    times = ["\N{EN DASH}" if each[name] is None else f"{each[name]:,.0f} ms" for name in ("p50_ms", "p95_ms")]
    by = each.get("service", "")  # reports made before calls were counted by service say nothing of it
    return (each["prompt_key"], by, each["calls"], valid, *times, each["timeouts"])


def _none_yet(none: bool) -> None:
    if none:
        note("No forecast yet: they appear here as they are written.")


def _card(row: Mapping[str, Any] | None) -> None:
    """A place in the stream: it is drawn again only when another forecast comes to stand there."""
    if row is None:
        return
    article = ui.element("article").classes("lexi-card")
    article.props["aria-label"] = str(row["ticker"])
    with article:
        with ui.row().classes("items-baseline gap-x-4"):
            ui.link(str(row["ticker"]), decision_page(row["id"], row["as_of"])).classes("lexi-h2")
            ui.label(f"{row['as_of']:%Y-%m-%d} {row['horizon']}").classes("lexi-muted")
            ui.label(f"{row['last_price']:.6g} \N{RIGHTWARDS ARROW} {row['mean']:.6g}")
            ui.label(f"({row['lower']:.6g} to {row['upper']:.6g})")
            ui.label(f"signal {row['side']}")
            ui.label(said(row)).classes(tone(row))
        if row["rationale"]:
            ui.label(row["rationale"]).classes("lexi-text")
        if row.get("before") is not None:
            _before(row["before"])


def _before(row: Mapping[str, Any]) -> None:
    """What the model last said of a series whose newest forecast it still judges."""
    with ui.row().classes("items-baseline gap-x-4"):
        ui.link(f"Before, of {row['as_of']:%Y-%m-%d}", decision_page(row["id"], row["as_of"]))
        ui.label(f"said at {row['judged_at']:%Y-%m-%d %H:%M:%S} UTC").classes("lexi-muted")
        ui.label(said(row)).classes(tone(row))
    if row["rationale"]:
        ui.label(row["rationale"]).classes("lexi-text lexi-muted")


def policy_words(row: Mapping[str, Any]) -> str:
    """What the policy says, or why it says nothing."""
    if row["allow"] is not None:
        return "policy allow" if row["allow"] else "policy deny"
    if row["error"] == PENDING:
        return "being judged"
    if row["status"] == "skipped":
        return f"policy not asked: {row['error']}" if row["error"] else "policy not asked"
    return f"policy {row['status']}"


def said(row: Mapping[str, Any]) -> str:
    """Policy, rules and verdict in a line."""
    words = [policy_words(row), *(row["reasons"] or ())]
    words += [f"\N{MIDDLE DOT} rules {'allow' if row['rules_allow'] else 'deny'}", *(row["rules_reasons"] or ())]
    if row["verdict"]:
        words.append(f"\N{MIDDLE DOT} an order was told {row['verdict']}")
    return " ".join(words)


def tone(row: Mapping[str, Any]) -> str:
    """Whether both allow, either denies, or the policy has nothing to say; of what is still judged, nothing."""
    if row["error"] == PENDING:
        return "lexi-muted"
    if row["allow"] is None and row["rules_allow"]:
        return "lexi-note"
    return "lexi-good" if row["allow"] and row["rules_allow"] else "lexi-bad"
