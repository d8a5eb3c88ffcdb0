"""Keeps `.env.example` equal to the settings classes: `python -m tools.env_example --check` or `--write`."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from libs.settings import Settings, environment_name, is_secret
from tools.generated import write_or_check

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / ".env.example"
HEADER = """\
# Every setting with its default. Copy this file to .env and remove the leading "# " of what you change.
# `make` and Compose read .env; the services read their environment only.
# Each secret is also read from a file named by NAME_FILE. A flag is 1/true/yes/on or 0/false/no/off.
"""


def settings_classes() -> Iterator[type[Settings]]:
    """Every settings class of the code base, libraries first, in a stable order."""
    for folder in ("libs", "services", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "Settings):" not in path.read_text(encoding="utf-8"):
                continue
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
            for value in vars(module).values():
                if isinstance(value, type) and issubclass(value, Settings) and value.__module__ == module.__name__:
                    yield value


def shown_default(field: FieldInfo) -> str:
    """A default as one would type it; empty for secrets and where there is none."""
    default: Any = field.get_default(call_default_factory=True) if field.default_factory is None else ""
    if default is None or default is PydanticUndefined or is_secret(field):
        return ""
    if isinstance(default, bool):
        return "true" if default else "false"
    if isinstance(default, tuple | list):
        return ",".join(str(item) for item in default)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return str(default)


def render() -> str:
    """The whole file. A variable that several classes read is written once, where it is read first."""
    lines = [HEADER]
    written: set[str] = set()
    for cls in settings_classes():
        fields = {environment_name(cls, name): field for name, field in cls.model_fields.items()}
        fresh = {name: field for name, field in fields.items() if name not in written}
        if not fresh:
            continue
        written |= fresh.keys()
        lines.append(f"# ---- {(cls.__doc__ or cls.__name__).strip().splitlines()[0]} ({cls.__module__})")
        for name, field in fresh.items():
            if not field.description:
                sys.exit(f"{cls.__module__}.{cls.__name__}: {name} has no description")
            lines += [f"# {field.description}", f"# {name}={shown_default(field)}", "#"]
    return "\n".join(lines).rstrip("#\n") + "\n"


if __name__ == "__main__":
    write_or_check(EXAMPLE, render, source="the settings classes")
