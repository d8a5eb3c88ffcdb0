"""The page on the paper broker says nothing that the broker does not take."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from services.paper.faults import FAULT, Fault
from services.paper.settings import PaperSettings
from tests.unit.paper_cases import Broker, made

PAGE = (Path(__file__).parents[2] / "docs" / "paper.md").read_text()
EXAMPLES: list[dict[str, Any]] = [json.loads(line) for line in PAGE.splitlines() if line.startswith('{"kind"')]


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
async def test_a_fault_of_the_page_is_taken(example: dict[str, Any]) -> None:
    await Broker(made()).strike(**example)


def test_the_page_shows_every_kind_of_fault() -> None:
    kinds = {get_args(kind.model_fields["kind"].annotation)[0] for kind in get_args(Fault)}
    assert {FAULT.validate_python(example).kind for example in EXAMPLES} == kinds


@pytest.mark.parametrize("name", PaperSettings.model_fields)
def test_the_page_names_every_setting(name: str) -> None:
    default = PaperSettings.model_fields[name].default
    [row] = [line for line in PAGE.splitlines() if line.startswith("|") and f"`{name.upper()}`" in line]
    assert row.split("|")[2].strip().strip("`") == ("none" if default is None else str(default))
