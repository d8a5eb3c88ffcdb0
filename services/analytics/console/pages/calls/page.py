"""Calls on record: search, page, open one. The page's address holds what was searched for, so it can be sent on."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from nicegui import ui
from sqlalchemy import RowMapping, text
from starlette.requests import Request

from libs.llm.call_pages import CallFilter, call, calls
from services.analytics.console.layout.addresses import address, uuid_of
from services.analytics.console.layout.frame import Console, page_frame, visitor_of
from services.analytics.console.layout.parts import Link, code, facts, heading, note, pretty, shown, table

PAGE = 50
PATH = "/calls"
NO_ADMIN = "Your key lacks the scope admin, which calls and what was said in them ask for."
COLUMNS = ("when", "prompt", "status", "ms", "version", "subject", "tokens", "asked by")
KEYS = text(
    """
    select key from activations union
    select each ->> 'prompt_key' from reports, jsonb_array_elements(content -> 'prompts') as each where name = 'hour'
    order by 1
    """
)
OUTCOMES = {"": "all", "true": "successful", "false": "not successful"}


def add(console: Console) -> None:
    """Register the two pages."""

    @ui.page(PATH)
    async def page(  # pyright: ignore[reportUnusedFunction]
        request: Request, key: str = "", version: str = "", success: str = "", before: str = ""
    ) -> None:
        visitor = visitor_of(request)
        with page_frame(visitor, title="Calls", here=PATH):
            if not visitor.session.may("admin"):
                note(NO_ADMIN)
                return
            asked = {"key": key[:64], "version": version[:32], "success": success if success in OUTCOMES else ""}
            try:
                keys, rows = await _keys(console), await _rows(console, asked, before)
            except Exception as error:  # noqa: BLE001 - the page says it, whatever it is
                _search(asked, ())
                note(f"The calls cannot be read now: {type(error).__name__}", tone="bad")
                return
            _search(asked, keys)
            _list(rows, asked, keys)

    @ui.page(f"{PATH}/{{call_id}}")
    async def one(request: Request, call_id: str) -> None:  # pyright: ignore[reportUnusedFunction]
        visitor = visitor_of(request)
        with page_frame(visitor, title="Call", here=PATH):
            if not visitor.session.may("admin"):
                note(NO_ADMIN)
                return
            wanted = uuid_of(call_id)
            try:
                row = None if wanted is None else await _one(console, wanted)
            except Exception as error:  # noqa: BLE001 - the page says it, whatever it is
                note(f"The call cannot be read now: {type(error).__name__}", tone="bad")
                return
            if row is None:
                note("There is no call of this id, or it is older than calls are kept.")
            else:
                _call(row)


async def _keys(console: Console) -> Sequence[str]:
    """The prompt keys that are known: of prompts in force at any time, and of the calls of the last hour."""
    async with console.engine.connect() as connection:
        return list((await connection.scalars(KEYS)).all())


async def _rows(console: Console, asked: Mapping[str, str], before: str) -> Sequence[RowMapping]:
    where = CallFilter(
        prompt_key=asked["key"] or None,
        version=asked["version"] or None,
        success={"true": True, "false": False}.get(asked["success"]),
    )
    async with console.engine.connect() as connection:
        return await calls(connection, limit=PAGE + 1, before=uuid_of(before), where=where)


async def _one(console: Console, call_id: UUID) -> RowMapping | None:
    async with console.engine.connect() as connection:
        return await call(connection, call_id)


def _search(asked: Mapping[str, str], keys: Sequence[str]) -> None:
    with ui.row().classes("items-end gap-x-4").props('role="search"'):
        key = ui.input("Prompt key", value=asked["key"], autocomplete=list(keys))
        version = ui.input("Version", value=asked["version"])
        outcome = ui.select(OUTCOMES, label="Outcome", value=asked["success"]).classes("w-40")

        def go() -> None:
            values = {
                "key": (key.value or "").strip(),
                "version": (version.value or "").strip(),
                "success": outcome.value,
            }
            ui.navigate.to(address(PATH, values))

        key.on("keydown.enter", go)
        version.on("keydown.enter", go)
        ui.button("Search", on_click=go).props("outline no-caps")


def nothing(asked: Mapping[str, str], keys: Sequence[str]) -> str:
    """Why a page of calls is empty, as far as it can be told."""
    if not any(asked.values()):
        return "No calls yet: every call to the model is listed here."
    if asked["key"] and asked["key"] not in keys:
        words = f"No calls here. {asked['key']} is no prompt that was in force, nor one asked in the last hour"
        return f"{words}: those are {', '.join(keys) or 'none'}."
    return "No calls here."


def _list(rows: Sequence[RowMapping], asked: Mapping[str, str], keys: Sequence[str]) -> None:
    if not rows:
        note(nothing(asked, keys))
        return
    with ui.element("div").classes("lexi-numbers"):
        table(COLUMNS, [_line(row) for row in rows[:PAGE]], label="Calls, newest first")
    if len(rows) > PAGE:
        ui.link("Older", address(PATH, {**asked, "before": rows[PAGE - 1]["id"]}))


def _line(row: RowMapping) -> tuple[object, ...]:
    status = f"{row['status']}, cached" if row["cached"] else row["status"]
    tokens = f"{row['tokens_in']} + {row['tokens_out']}"
    by = row["caller"] or row["service"]
    opened = Link(shown(row["ts"]), f"{PATH}/{row['id']}")
    said = (row["prompt_key"], status, f"{row['total_ms']:.0f}", row["prompt_version"], row["subject"])
    return (opened, *said, tokens, by)


def _call(row: RowMapping) -> None:
    left_out = {"messages", "sampling", "inputs", "reply", "has_body"}
    facts([(name, value) for name, value in row.items() if name not in left_out])
    if row["retry_of"]:
        ui.link("The call that this one asks again", f"{PATH}/{row['retry_of']}")
    if not row["has_body"]:
        note("What was sent and received was not kept, or not for so long.")
        return
    messages: Sequence[Mapping[str, Any]] = row["messages"]
    for message in messages:
        heading(f"Sent: {message['role']}")
        code(str(message["content"]), name=f"message of {message['role']}")
    heading("Received")
    code(row["reply"], name="reply")
    heading("Sampling and inputs")
    code(pretty({"sampling": row["sampling"], "inputs": row["inputs"]}), name="sampling and inputs")
