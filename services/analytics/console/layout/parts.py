"""Pieces that several pages are made of. Every text goes into a label, so none of it is ever HTML."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar

import orjson
from nicegui import ui

Value = TypeVar("Value")

WIDE = 5
"""Columns from which on a table does not fit a phone."""
SIDEWAYS = "More columns to the right: scroll the table sideways \N{RIGHTWARDS ARROW}"


def heading(words: str, *, level: int = 2) -> None:
    """A heading below the page's own."""
    ui.label(words).classes("lexi-h2").props(f'role="heading" aria-level="{level}"')


def note(words: str, *, tone: str = "muted") -> None:
    """A sentence in a card; `tone` is good, note, bad or muted."""
    ui.label(words).classes(f"lexi-card lexi-text lexi-{tone}").props('role="status"')


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values, one below the other; values that are None are left out."""
    with ui.element("dl").classes("lexi-facts"):
        for name, value in pairs:
            if value is not None and value != "":
                with ui.element("dt"):
                    ui.label(name)
                with ui.element("dd"):
                    ui.label(shown(value)).classes("lexi-text")


def shown(value: object) -> str:
    """A value as a person reads it."""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S} UTC"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def pretty(value: Any) -> str:
    """JSON, indented."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode()


def code(words: str, *, name: str) -> None:
    """A text as it is, with a name for who cannot see where it stands."""
    with ui.element("div").classes("lexi-card").props(f'role="group" aria-label="{name}" tabindex="0"'):
        ui.label(words or "(empty)").classes("lexi-mono")


def table(names: Sequence[str], rows: Iterable[Sequence[object]], *, label: str) -> None:
    """A table of texts; a cell that is a pair of a text and an address is a link.

    On a phone a wide one says that there is more beside what is seen.
    """
    if len(names) >= WIDE:
        ui.label(SIDEWAYS).classes("lexi-sideways lexi-muted")
    with (
        ui.element("div").classes("lexi-scroll").props(f'tabindex="0" role="region" aria-label="{label}"'),
        ui.element("table").classes("lexi-table"),
    ):
        with ui.element("thead"), ui.element("tr"):
            for name in names:
                with ui.element("th").props('scope="col"'):
                    ui.label(name)
        with ui.element("tbody"):
            for row in rows:
                with ui.element("tr"):
                    for cell in row:
                        with ui.element("td"):
                            _cell(cell)


def _cell(cell: object) -> None:
    if isinstance(cell, Link):
        ui.link(cell.words, cell.address)
    else:
        ui.label("" if cell is None else shown(cell))


class Link:
    """A link in a table."""

    __slots__ = ("address", "words")

    def __init__(self, words: str, address: str) -> None:
        self.words = words
        self.address = address


class Part(Generic[Value]):
    """A part of the page that is drawn again when what it shows has changed, and not before."""

    def __init__(self, draw: Callable[[Value], None]) -> None:
        self._draw = draw
        self._box = ui.element("div").classes("lexi-part")
        self._shown: tuple[Value] | None = None
        with self._box:
            note("Reading\N{HORIZONTAL ELLIPSIS}")

    def show(self, value: Value) -> None:
        """Show a value."""
        if self._shown != (value,):
            self._shown = (value,)
            self._box.clear()
            with self._box:
                self._draw(value)
