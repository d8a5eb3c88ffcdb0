"""Where a number stands in `summary.json`, and the number with that written on it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Final, TypeAlias, cast

import orjson
from markupsafe import Markup

from libs.evaluation.report.numbers import number, without_unit
from libs.evaluation.report.texts import is_hidden

Step: TypeAlias = str | int
_SIGNS: Final = {"~": "~0", ".": "~1"}
_SIGN: Final = re.compile("~(?:[01]|x([0-9A-F]+);)")


def path_of(steps: Iterable[Step]) -> str:
    """`versions.0.figures.validity.value`.

    A dot in a name is written `~1` and a tilde `~0`, as JSON Pointer does; a hidden character `~x200B;`.
    """
    return ".".join("".join(_written(each) for each in str(step)) for step in steps)


def _written(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    return f"~x{ord(character):X};" if character in "\n\t" or is_hidden(character) else character


def found_at(document: Any, path: str) -> Any:
    """What stands at a path. Raises `KeyError` or `IndexError` where nothing does."""
    found = document
    for step in path.split("."):
        name = _SIGN.sub(_read, step)
        steps: Any = cast("Sequence[Any] | Mapping[str, Any]", found)
        found = steps[int(name) if isinstance(found, list) else name]
    return found


def _read(sign: re.Match[str]) -> str:
    return {"~0": "~", "~1": "."}.get(sign[0]) or chr(int(sign[1], 16))


class Numbers:
    """The numbers of a document as HTML, each looked up by its path: what is shown is what stands there."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document

    def __call__(self, *steps: Step | list[Step], unit: str = "count", bare: bool = False) -> Markup:
        """The number at a path with its unit; a dash, and no mark, where there is none. Units as in `numbers`.

        A path is given in steps, or in parts that are lists of steps. `bare` leaves out the unit.
        """
        path = path_of(chain.from_iterable(step if isinstance(step, list) else [step] for step in steps))
        value = found_at(self._document, path)
        if value is None:
            return Markup("{}").format(number(None))
        exact, shown = orjson.dumps(value).decode(), number(value, unit)
        return Markup('<span data-figure="{}" data-value="{}" data-unit="{}">{}</span>').format(
            path, exact, unit, without_unit(shown) if bare else shown
        )
