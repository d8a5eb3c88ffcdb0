"""Reading a report's page back: its tags, its words, and the numbers it shows with where they come from."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any, cast

from libs.evaluation.report.paths import path_of

IN_PERCENT = {"rate", "return", "points", "low"}


@dataclass
class Shown:
    """One number of a page: where it stands in the summary, its exact value and its unit, and what a reader sees."""

    path: str
    value: str
    unit: str
    text: str = ""


class Read(HTMLParser):
    """What a browser would make of a page: tags that close, ids, words, numbers."""

    VOID = frozenset({"meta", "br", "hr", "link", "img", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.attributes: set[tuple[str, str]] = set()
        self.words = ""
        self.numbers: list[Shown] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= {(tag, name) for name, _ in attrs}
        self.ids.update(value for name, value in attrs if name == "id" and value)
        given = dict(attrs)
        if "data-figure" in given:
            path, value, unit = (given[name] or "" for name in ("data-figure", "data-value", "data-unit"))
            self.numbers.append(Shown(path, value, unit))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data
        if self.numbers and not self.numbers[-1].text:
            self.numbers[-1].text = data


def says(shown: Shown, exact: float) -> bool:
    """Whether what a reader sees is the exact number, but for the digits that are left out."""
    text = shown.text.replace("\N{MINUS SIGN}", "-").replace(",", "")
    found = re.fullmatch(r"(< |> )?([+-]?\d+(?:\.(\d+))?)(?: (?:%|ms|s|USD|percentage points))?", text)
    if found is None:
        return False
    side, number, digits = found.groups()
    meant, given = exact * (100 if shown.unit in IN_PERCENT else 1), float(number)
    if side is not None:
        return meant < given if side == "< " else meant > given
    last = 10.0 ** -len(digits or "")
    if shown.unit == "low":
        return given <= meant + 1e-6 < given + last + 2e-6
    return abs(meant - given) <= last / 2 + 1e-9 * abs(meant)


def leaves(document: Any, *steps: str | int) -> Iterator[str]:
    """The paths of all numbers in a document."""
    if isinstance(document, bool) or document is None or isinstance(document, str):
        return
    if isinstance(document, dict):
        for name, entry in cast("dict[str, Any]", document).items():
            yield from leaves(entry, *steps, name)
    elif isinstance(document, list):
        for at, entry in enumerate(cast("list[Any]", document)):
            yield from leaves(entry, *steps, at)
    else:
        yield path_of(steps)
