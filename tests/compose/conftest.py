"""One stack for all of these tests: built, brought up, and taken away whatever happens."""

import secrets
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from tests.compose.model import LOOPBACK, HostModel, bridge_address
from tests.compose.stack import IMAGES, PORTS, ComposeStack, missing_engine

FIGURES: list[str] = []
"""What was measured, for whoever runs this to read."""


@pytest.fixture(scope="session", autouse=True)
def engine_of_docker() -> None:
    """Nothing here is skipped: without a Docker engine it fails, and says so in a sentence."""
    missing = missing_engine()
    if missing is not None:
        pytest.fail(missing, pytrace=False)


@pytest.fixture(scope="session")
def host_model(engine_of_docker: None) -> Iterator[HostModel]:
    """The model server on the host, with a key, where people and containers reach it."""
    made = HostModel(hosts=(LOOPBACK, bridge_address()), api_key=f"lexi-{secrets.token_hex(12)}")
    made.mend()
    yield made
    made.close()


@pytest.fixture(scope="session")
def shared_stack(host_model: HostModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    """The stack with the paper broker, up and healthy."""
    folder: Path = tmp_path_factory.mktemp("compose") / "lexi-gateway"
    made = ComposeStack(folder, model=host_model)
    made.settings["ENABLE_PANIC_EXIT"] = "1"
    try:
        made.prepare()
        built_s = made.build()
        up_s = made.up()
        FIGURES.append(f"docker compose build: {built_s:.1f} s; docker compose up to healthy: {up_s:.1f} s")
        yield made
    finally:
        made.down()
        made.run("docker", "image", "rm", *IMAGES.values())


@pytest.fixture
def stack(shared_stack: ComposeStack) -> ComposeStack:
    """The same for each test, with the model well and everybody ready."""
    shared_stack.model.mend()
    if any(shared_stack.ready(port)[0] != HTTPStatus.OK for port in PORTS):
        shared_stack.up()  # a test that failed in the middle left something stopped
    shared_stack.until_ready()
    return shared_stack


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures, after everything else."""
    for line in FIGURES:
        terminalreporter.write_line(line)
