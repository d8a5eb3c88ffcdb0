"""`docs/openapi.yaml` is a valid document, and says what the gateway's code says: paths, error codes, bounds."""

import ast
import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
import yaml

from libs.keys import KeyLimits
from services.api.dataplane.app import ENDPOINTS, LONGEST_DEADLINE_MS
from services.api.dataplane.errors import STATUSES
from services.api.dataplane.inquiry import MODEL_LENGTH, REFUSED
from tests.conformance.house import ROOT

DOCUMENT = ROOT / "docs" / "openapi.yaml"
SOURCE = ROOT / "services" / "api" / "dataplane"
NEVER_SEEN = {499}  # of clients that left
CHOSEN = {"connect_timeout": 504}  # chosen in code, by what is behind a failed connection
CODE = re.compile(r"`([a-z]+(?:_[a-z]+)+)`")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The document."""
    return yaml.safe_load(DOCUMENT.read_text(encoding="utf-8"))


def codes_in_code() -> Iterator[tuple[int, str]]:
    """Status and code of every error that the code makes out of constants."""
    for file in sorted(SOURCE.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id != "ApiError":
                continue
            match node.args[:2]:
                case [ast.Constant(value=int(status)), ast.Constant(value=str(code))] if status not in NEVER_SEEN:
                    yield status, code
                case _:
                    pass
    yield from ((status, code) for _, status, code in STATUSES)
    yield from ((status, code) for code, status in CHOSEN.items())


def told(document: dict[str, Any]) -> dict[int, str]:
    """What the document says about each status of an error."""
    found: dict[int, str] = {}
    for path in document["paths"].values():
        for operation in path.values():
            for status, answer in operation["responses"].items():
                if status != "200":
                    name = answer["$ref"].rpartition("/")[2]
                    found[int(status)] = document["components"]["responses"][name]["description"]
    return found


def test_it_is_valid() -> None:
    schemathesis.openapi.from_path(str(DOCUMENT)).validate()  # pyright: ignore[reportUnknownMemberType]


def test_it_has_every_path(document: dict[str, Any]) -> None:
    assert set(document["paths"]) == {path.removeprefix("/v1") for path in ENDPOINTS} | {"/models", "/models/{id}"}


def test_it_names_every_code_under_its_status(document: dict[str, Any]) -> None:
    descriptions = told(document)
    missing = [(status, code) for status, code in codes_in_code() if f"`{code}`" not in descriptions.get(status, "")]
    assert not missing


def test_it_names_no_code_that_is_not_there(document: dict[str, Any]) -> None:
    source = "".join(file.read_text(encoding="utf-8") for file in SOURCE.glob("*.py"))
    named = {code for text in told(document).values() for code in CODE.findall(text)}
    assert len(named) > 20
    assert not [code for code in sorted(named) if f'"{code}"' not in source]


def test_its_bounds_are_those_of_the_code(document: dict[str, Any]) -> None:
    components = document["components"]
    schemas = components["schemas"]
    refused = [field for one in schemas["RefusedFields"]["not"]["anyOf"] for field in one["required"]]
    assert sorted(refused) == sorted(REFUSED)
    assert all(f"`{field}`" in document["info"]["description"] for field in refused)
    assert schemas["ModelName"]["maxLength"] == MODEL_LENGTH
    assert schemas["Choices"]["maximum"] == KeyLimits().choices
    assert components["parameters"]["Deadline"]["schema"]["maximum"] == LONGEST_DEADLINE_MS
