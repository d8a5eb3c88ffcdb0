"""Doing what a page of docs says, on a running stack."""

import re
from collections.abc import Callable

from tests.acceptance.stack import eventually
from tests.compose.page import Page
from tests.compose.stack import PORTS, ComposeStack

PORT = re.compile(r"(?<=[:' ])(8001|8002|8008|9101|9102)\b")
SHELL = "KEY=$(cat secrets/operator.key)\n"


def paste(stack: ComposeStack, page: Page, section: str, step: str) -> str:
    """Run the commands as they stand there, in the project's folder, on this stack's ports; what they printed."""
    block = page.commands(section, step, house="compose")
    ports = {said: stack.ports[name] for name, said in PORTS.items()} | {"8008": str(stack.model.port)}
    done = stack.run("bash", "-e", "-c", SHELL + PORT.sub(lambda found: ports[found[1]], block))
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def until(look: Callable[[], str], *words: str) -> str:
    """Look again until all these words are in what is shown."""
    shown = ""

    def found() -> str | None:
        nonlocal shown
        shown = look()
        return shown if all(word in shown for word in words) else None

    try:
        return eventually(found, what=f"{words} are shown", within_s=240)
    except AssertionError as error:
        raise AssertionError(f"{error}; the last that was shown:\n{shown}") from error
