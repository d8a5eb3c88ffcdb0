"""A headless Chromium: the machine's own, driven by Playwright."""

import importlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from tests.browser.console_desk import Desk

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking")


@dataclass
class Visit:
    """A page that was opened: Playwright's page, and everything that it complained about or asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list[str])
    asked_for: list[str] = field(default_factory=list[str])

    def said(self, message: Any) -> None:
        """A line on the console, of any kind."""
        self.complaints.append(f"{message.type}: {message.text}")

    def failed(self, error: Any) -> None:
        """A script that broke, where none should run."""
        self.complaints.append(f"error: {error}")

    def spoke(self, dialog: Any) -> None:
        """A window that opened, as `alert` does."""
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def asked(self, request: Any) -> None:
        """Something was fetched."""
        self.asked_for.append(str(request.url))


@dataclass(frozen=True)
class Browser:
    """Opens files as a reader would, at a width and in light or dark."""

    chromium: Any

    def open(self, file: Path, *, width: int = 1200, scheme: Literal["light", "dark"] = "light") -> Visit:
        """The file, loaded. Anything a page might ask for is let through to be seen."""
        page = self.chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        visit = Visit(page)
        page.on("console", visit.said)
        page.on("pageerror", visit.failed)
        page.on("dialog", visit.spoke)
        page.on("request", visit.asked)
        page.goto(file.as_uri(), wait_until="load")
        return visit


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A browser for all tests of a run."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.fail(f"none of {', '.join(NAMES)} is on the path: apt-get install -y chromium")
    try:
        playwright: Any = importlib.import_module("playwright.sync_api")
    except ImportError:
        pytest.fail("no Playwright: pip install --require-hashes -r requirements/browser.txt; `make proof` does it")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield Browser(chromium)
        chromium.close()


@pytest.fixture(scope="session")
def desk(browser: Browser) -> Iterator["Desk"]:
    """A whole stack with hostile strangers, for all tests of the console."""
    with tempfile.TemporaryDirectory(prefix="lexi-console-", ignore_cleanup_errors=True) as folder:
        yield from importlib.import_module("tests.browser.console_desk").running_desk(browser, Path(folder) / "state")
