"""One decision: what it was made of, what was said, what orders were told, what came of it, and asking again."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from nicegui import ui
from sqlalchemy import RowMapping
from starlette.requests import Request

from libs.judgement.record import VERSION
from libs.llm.call_pages import call
from services.analytics.console.layout.addresses import address, moment_of, uuid_of
from services.analytics.console.layout.frame import Console, Visitor, page_frame, visitor_of
from services.analytics.console.layout.parts import code, facts, heading, note, pretty, shown, table
from services.analytics.console.pages.calls.page import PATH as CALLS
from services.analytics.console.pages.decision import words
from services.analytics.console.pages.decision.replaying import NO_ADMIN, Replaying
from services.analytics.console.pages.forecasts.page import PATH
from services.analytics.console.pages.forecasts.queries import MOST_VERDICTS_READ, Row, forecast, verdicts_on

TONES: Mapping[words.Word, str] = {
    "allow": "good",
    "deny by policy": "bad",
    "deny by rules": "bad",
    "no decision": "note",
}
ASKED = ("policy", "rationale")
ORDERS = ("when", "order", "by", "asked", "told", "would have been", "mode", "reasons")


def add(console: Console) -> None:
    """Register the page."""

    @ui.page(f"{PATH}/{{forecast_id}}")
    async def page(request: Request, forecast_id: str, as_of: str = "") -> None:  # pyright: ignore[reportUnusedFunction]
        visitor = visitor_of(request)
        with page_frame(visitor, title="Decision", here=PATH):
            try:
                found = await _read(console, visitor, uuid_of(forecast_id), moment_of(as_of))
            except Exception as error:  # noqa: BLE001 - the page says it, whatever it is
                note(f"The decision cannot be read now: {type(error).__name__}", tone="bad")
                return
            if found is None:
                note("There is no forecast of this id, or it is older than forecasts are kept.")
                return
            row, verdicts, calls = found
            _head(row)
            _verdicts(verdicts)
            record: Mapping[str, Any] | None = row["llm"]
            if record is None or record.get("v") != VERSION:
                note("Nothing that can be read here was noted beside these numbers.")
                return
            _said(record)
            _inputs(record["inputs"])
            for key in ASKED:
                _sent(key, record[key], calls.get(key), may=visitor.session.may("admin"))
            heading("Replay")
            for key in ASKED:
                Replaying(console, visitor, key=key, block=record[key]).shown()


Found = tuple[Row, Sequence[Row], Mapping[str, RowMapping | None]]


async def _read(console: Console, visitor: Visitor, forecast_id: UUID | None, as_of: datetime | None) -> Found | None:
    """The forecast, what orders were told on it, and the calls behind it where the visitor may see them."""
    if forecast_id is None:
        return None
    async with console.engine.connect() as connection:
        row = await forecast(connection, forecast_id, as_of)
        if row is None:
            return None
        record: Mapping[str, Any] = row["llm"] or {}
        calls: dict[str, RowMapping | None] = {}
        for key in ASKED if record and visitor.session.may("admin") else ():
            call_id = uuid_of(record[key].get("call_id") or "")
            calls[key] = None if call_id is None else await call(connection, call_id)
        return row, await verdicts_on(connection, row), calls


def _head(row: Row) -> None:
    policy: Mapping[str, Any] = {} if row["llm"] is None else row["llm"]["policy"]
    decision = policy.get("decision")
    said = words.word_of(
        allow=None if decision is None else decision["allow"], rules_allow=policy.get("rules", {}).get("allow")
    )
    ui.link(
        f"All forecasts of {row['ticker']}", address(PATH, {name: row[name] for name in ("ticker", "horizon", "model")})
    )
    note(f"{row['ticker']}, {shown(row['as_of'])}: {said}.", tone=TONES[said])
    side = None if row["llm"] is None else row["llm"]["inputs"]["signal"]["side"]
    facts(
        [
            ("price", row["last_price"]),
            ("forecast", f"{shown(row['mean'])} ({shown(row['lower'])} to {shown(row['upper'])})"),
            ("signal", side),
            ("what came", words.outcome_words(row)),
            ("horizon", row["horizon"]),
            ("by", row["model"]),
            ("feed", row["feed"]),
            ("written", row["ts"]),
            ("last judged", row["judged_at"] or "not yet"),
            ("id", row["id"]),
        ]
    )


def _verdicts(verdicts: Sequence[Row]) -> None:
    heading("What orders were told")
    if not verdicts:
        note("No order was told anything on this forecast.")
        return
    with ui.element("div").classes("lexi-words"):
        table(ORDERS, [_verdict(row) for row in verdicts], label="Verdicts on this forecast, oldest first")
    if verdicts[0]["looked_through"] == MOST_VERDICTS_READ:
        note(f"Only the first {MOST_VERDICTS_READ} verdicts since it was written were looked through.")


def _verdict(row: Row) -> tuple[object, ...]:
    asked = f"{row['side']} {row['qty']:f} at {row['ref_price']:f}" + (", reduce only" if row["reduce_only"] else "")
    reasons = "\n".join(words.reason_words(code) for code in row["reasons"])
    order = row["client_order_id"] if row["first"] else f"{row['client_order_id']} (again)"
    by = f"{row['key_name']}, {row['strategy']}" if row["strategy"] else row["key_name"]
    return (row["at"], order, by, asked, row["verdict"], row["would_have"], row["mode"], reasons)


def _said(record: Mapping[str, Any]) -> None:
    rationale, policy = record["rationale"], record["policy"]
    heading("What the model said")
    note(rationale["text"] or f"No rationale. {words.status_words(rationale)}", tone="plain")
    if rationale["ungrounded_numbers"]:
        loose = ", ".join(map(str, rationale["ungrounded_numbers"]))
        note(f"These numbers of the rationale stand in none of its inputs: {loose}.", tone="note")
    heading("The policy's reply, as received", level=3)
    code(policy["raw"], name="raw reply of the policy")
    heading("How it was read", level=3)
    note(f"{words.status_words(policy)} {words.decision_words(policy['decision'])}".strip(), tone="plain")
    heading("What the rules said", level=3)
    _rules(policy["rules"])


def _rules(rules: Mapping[str, Any]) -> None:
    if rules["allow"]:
        note("Every rule that is on for this feed allows.", tone="good")
        return
    with ui.element("ul").classes("lexi-card lexi-list"):
        for reason in rules["reasons"]:
            with ui.element("li"):
                ui.label(words.rule_words(str(reason))).classes("lexi-bad")


def _inputs(inputs: Mapping[str, Any]) -> None:
    heading("What it was made of")
    signal = inputs["signal"]
    facts(
        [
            ("signal", f"{signal['side']}, expected return {known(signal['expected_return'], '+.2%')}"),
            ("daily turnover in USD", known(inputs["liquidity_usd"], ",.0f")),
            ("bars present, %", known(inputs["coverage_pct"], ".4g")),
            ("trading days to earnings", known(inputs["earnings_in_days"], "d")),
        ]
    )
    heading("Factors, in standard deviations", level=3)
    if inputs["factors"]:
        table(("factor", "score"), list(inputs["factors"].items()), label="Factors")
    else:
        note("None: the history was too short.")
    heading("Facts", level=3)
    if inputs["facts"]:
        rows = [(name, one["value"], one["as_of"], one["source"]) for name, one in inputs["facts"].items()]
        table(("name", "value", "as of", "source"), rows, label="Facts")
    else:
        note("None was known.")
    heading("Headlines", level=3)
    if not inputs["headlines"]:
        note("None was known.")
        return
    with ui.element("ul").classes("lexi-card lexi-list"):
        for headline in inputs["headlines"]:
            with ui.element("li"):
                ui.label(str(headline)).classes("lexi-text")


def _sent(key: str, block: Mapping[str, Any], row: RowMapping | None, *, may: bool) -> None:
    """The prompt as it was sent."""
    heading(f"The {key} prompt, as sent")
    if block.get("call_id") is None:
        note(words.status_words(block))
        return
    if not may:
        note(NO_ADMIN)
        return
    if row is None:
        note("Its call is not on record: it is older than calls are kept, or still on its way.")
        return
    version = f"{row['prompt_key']} {row['prompt_version']}" + (f", arm {row['arm']}" if row["arm"] else "")
    cached = ", answered from the cache" if row["cached"] else ""
    facts([("version", version), ("answered by", f"{row['model']}, {row['total_ms']:.0f} ms{cached}")])
    ui.link("The whole call", f"{CALLS}/{row['id']}")
    if not row["has_body"]:
        note("What was sent was not kept, or not for so long.")
        return
    for message in row["messages"]:
        heading(f"To the model, as {message['role']}", level=3)
        content = message["content"]
        code(content if isinstance(content, str) else pretty(content), name=f"{key} message of {message['role']}")


def known(number: float | None, form: str) -> str:
    """A number that may not be known."""
    return "not known" if number is None else format(number, form)
