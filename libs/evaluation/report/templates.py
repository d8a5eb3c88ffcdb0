"""The templates of this folder, with what all of them use. Everything they are given is escaped unless it is Markup."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from libs.evaluation.report.numbers import number
from libs.evaluation.report.texts import plain, visible
from libs.evaluation.report.verdict import chance
from libs.pages import house_style

FOLDER: Final = Path(__file__).parent


@cache
def template(name: str) -> Template:
    """A template by its file's name."""
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": number, "visible": visible, "plain": plain, "chance": _chance}
    own = Markup((FOLDER / "page.css").read_text(encoding="utf-8"))  # noqa: S704 - our own file
    everywhere: dict[str, Any] = {"style": house_style(), "own_style": own}
    return made.get_template(name, globals=everywhere)


def _chance(pair: Mapping[str, Any], *sides: str) -> str:
    return chance(pair["p"], apart=any(pair[side] for side in sides))
