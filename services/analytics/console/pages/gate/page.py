"""The gate: what it blocks or would block and what that made, what it said lately, and its two switches."""

from collections.abc import Mapping, Sequence
from typing import Any

from nicegui import ui
from starlette.requests import Request

from libs.shadow import Shadow
from libs.trading.reasons import Reason
from services.analytics.console.layout.frame import Console, keep_fresh, page_frame, visitor_of
from services.analytics.console.layout.parts import Link, Part, heading, note, table
from services.analytics.console.pages.forecasts.page import decision_page
from services.analytics.console.pages.gate.queries import HOURS, MOST_COUNTED, MOST_SHOWN, Lately, lately, newest
from services.analytics.console.pages.gate.switches import SWITCHES, SwitchCard
from services.analytics.console.pages.gate.words import FATES, REASONS, VERSIONS, by_reason, by_version, fates, meaning
from services.analytics.console.reports import Made, made

PATH = "/gate"
SWITCHES_EVERY_S = 0.5
TABLES_EVERY_S = 10.0
API_AWAY = (
    "A press here is tried all the same, and says what came of it. On the machine, make gate-on, gate-off, shadow-on "
    "and shadow-off do not need it."
)
NONE_MADE = "No report yet: services.jobs makes it every minute."
COUNTS = ("reason", "verdicts", "refused", "enforce would refuse", "meaning")
VERDICTS = ("when", "ticker", "order", "told", "enforce would", "mode", "reasons", "asked by", "its id", "behind it")


def add(console: Console) -> None:
    """Register the page."""

    @ui.page(PATH)
    def page(request: Request) -> None:  # pyright: ignore[reportUnusedFunction]
        visitor = visitor_of(request)
        with page_frame(visitor, title="Gate", here=PATH):
            trouble = Part(_trouble)
            trouble.show(())
            with ui.element("div").classes("lexi-pair"):
                cards = {switch.name: SwitchCard(console, visitor, switch) for switch in SWITCHES}
            heading("Shadow beside enforce")
            shadow = Part(_shadow)
            heading(f"Verdicts of the last {HOURS} hours, by reason")
            reasons = Part(_lately)
            heading(f"The newest {MOST_SHOWN} verdicts")
            verdicts = Part(_verdicts)

        async def look_at_switches() -> None:
            picture = console.live.watch()
            trouble.show(amiss(console))
            for stand in () if picture.moment is None else picture.moment.switches:
                cards[stand.name].show(stand)

        async def look_at_tables() -> None:
            async with console.engine.connect() as connection:
                report = await made(connection, "shadow")
                counted = await lately(connection)
                rows = await newest(connection)
            shadow.show(report)
            reasons.show(counted)
            verdicts.show([dict(row) for row in rows])

        keep_fresh(console, visitor, look_at_switches, every_s=SWITCHES_EVERY_S)
        keep_fresh(console, visitor, look_at_tables, every_s=TABLES_EVERY_S)


def amiss(console: Console) -> tuple[str, ...]:
    """What keeps this page from showing or doing what it should."""
    lines, found = console.live.picture.lines, list[str]()
    database, api = lines.get("database"), lines.get("api")
    if database is not None and database.state == "bad":
        words = f"Postgres does not answer, {database.when} ({database.words})."
        found.append(f"{words} What stands below was read before.")
    if api is not None and api.state == "bad":
        found.append(f"{api.words[:1].upper()}{api.words[1:]} ({api.when}). {API_AWAY}")
    return tuple(found)


def _trouble(sentences: tuple[str, ...]) -> None:
    for sentence in sentences:
        note(sentence, tone="bad")


def _shadow(report: Made | None) -> None:
    if report is None:
        note(NONE_MADE)
        return
    found = Shadow.model_validate(report.content)
    note(found.summary[:1].upper() + found.summary[1:], tone="note" if not found.enough_data else "ink")
    late = " That is long ago: services.jobs does not seem to run." if report.late else ""
    ui.label(
        f"Made at {report.made_at:%Y-%m-%d %H:%M} UTC from the first verdicts on entries since {found.since:%Y-%m-%d}, "
        f"in {report.took_ms:.0f} ms. Intervals are of 95 % and by market day; gains are in the "
        f"account's currency; costs of trading are left out.{late}"
    ).classes("lexi-muted lexi-text")
    table(FATES, fates(found), label="What enforce lets through beside what it blocks")
    if found.versions:
        heading("Per version and arm", level=3)
        table(VERSIONS, by_version(found), label="Per version and arm")
    if found.reasons:
        heading("What enforce would refuse, by reason", level=3)
        table(REASONS, by_reason(found), label="What enforce would refuse, by reason")


def _lately(found: Lately) -> None:
    total = found.total
    if not total.verdicts:
        note("No verdict in this time.")
        return
    which = f"The newest {MOST_COUNTED:,} verdicts of this time" if found.cut else f"{total.verdicts} verdicts"
    ui.label(f"{which}: {total.refused} refused, enforce would refuse {total.would_refuse}.")
    rows = [
        (each.reason, each.verdicts, each.refused, each.would_refuse, meaning(each.reason)) for each in found.by_reason
    ]
    table(COUNTS, rows, label="Verdicts by reason")


def _verdicts(rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        note("No verdict yet: each order that asks the gate is listed here.")
        return
    table(VERDICTS, [_verdict(row) for row in rows], label="The newest verdicts")


def reasons_of(row: Mapping[str, Any]) -> str:
    """The reasons of a verdict; where a rule denied, which one."""
    rules = ", ".join(row["rules"] or ())
    return ", ".join(f"{each} ({rules})" if each == Reason.RULE_DENY and rules else each for each in row["reasons"])


def _verdict(row: Mapping[str, Any]) -> tuple[object, ...]:
    order = f"{row['side']} {row['qty']:f} at {row['ref_price']:.6g}" + (", reduces" if row["reduce_only"] else "")
    told = row["verdict"] if row["first"] else f"{row['verdict']}, asked again"
    said = (told, row["would_have"], row["mode"], reasons_of(row))
    by = f"{row['strategy']}, key {row['key_name']}" if row["strategy"] != row["key_name"] else row["strategy"]
    opened = Link("decision", decision_page(row["forecast_id"], row["as_of"])) if row["forecast_id"] else ""
    return (row["at"], row["ticker"], order, *said, by, row["client_order_id"], opened)
