"""What the pages this house writes have in common: one style sheet, and pictures that take their colours from it."""

from functools import cache
from pathlib import Path
from typing import Final

from markupsafe import Markup

STYLE: Final = Path(__file__).with_name("house.css")


@cache
def house_style() -> Markup:
    """The style sheet, to stand inside a page's `<style>`."""
    return Markup(STYLE.read_text(encoding="utf-8"))  # noqa: S704 - our own file
