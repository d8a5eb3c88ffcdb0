"""Schemathesis over `docs/openapi.yaml` against the gateway as a process, in all its phases.

The engine behind it is well, so an answer of 5xx is ours, and every answer must be one that the document promises.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import yaml

from tests.conformance.conftest import TEXT, open_house
from tests.conformance.house import ROOT, WELL, House
from tools.local_stack.postgres import EmbeddedPostgres

pytestmark = [pytest.mark.xdist_group("openapi"), pytest.mark.timeout(1800)]
DOCUMENT = ROOT / "docs" / "openapi.yaml"
HOOKS = Path(__file__).with_name("openapi_hooks.py")
PATIENT = hypothesis.settings().max_examples > 100  # the profile `proof`
# The same requests each time in `make test`; new ones each time in `make proof`, which prints the seed with a failure.
EFFORT = (
    ["--max-examples=1000", "--generation-database=none"]
    if PATIENT
    else ["--max-examples=100", "--generation-deterministic"]
)


@pytest.fixture(scope="module")
def here(postgres: EmbeddedPostgres) -> Iterator[House]:
    """A gateway of its own."""
    with open_house(postgres, "openapi", reply=TEXT) as running:
        yield running


@pytest.fixture
def document(tmp_path: Path) -> Path:
    """The document with the one model that this test has, so that requests get past the question for the model."""
    content = yaml.safe_load(DOCUMENT.read_text(encoding="utf-8"))
    content["components"]["schemas"]["ModelName"]["enum"] = [WELL]
    path = tmp_path / "openapi.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def test_every_answer_is_one_that_the_document_promises(document: Path, here: House, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(document)]
    settings = {
        "--url": here.url,
        "--header": "Authorization: Bearer fuzzer",
        "--phases": "examples,coverage,fuzzing,stateful",
        "--mode": "all",
        "--checks": "all",
        "--workers": "1",  # Hypothesis and ast.parse of Python 3.11 share a recursion limit badly between threads
        "--warnings": "off",
        "--output-sanitize": "false",
        "--request-timeout": "30",
    }
    words = [word for pair in settings.items() for word in pair]
    done = subprocess.run(
        [*command, *words, *EFFORT, "--continue-on-failure", "--no-color"],
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    assert len(here.engines[WELL].requests) > 20, "hardly anything got as far as the engine"
