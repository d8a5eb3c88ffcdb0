"""The websocket of a page is cut: the page says so, what needs none of it goes on, and it comes back by itself."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest

from tests.browser.console_desk import SCREENSHOTS, Desk, told
from tests.browser.test_console_away import PATIENCE_MS, without

pytestmark = pytest.mark.timeout(600)

LOST = "Connection lost."
MORE = """getComputedStyle(document.getElementById("popup"), "::after").content"""


class Wire:
    """What a page is live by, so that it can be cut: its websocket, and the polling that stands in for one."""

    def __init__(self, page: Any) -> None:
        self._page = page
        self._open: list[Any] = []
        self._is_cut = False
        page.route_web_socket("**/_nicegui_ws/**", self._opened)

    def _opened(self, socket: Any) -> None:
        if self._is_cut:
            socket.close()
            return
        socket.connect_to_server()
        self._open.append(socket)

    @contextmanager
    def cut(self) -> Generator[None]:
        """Without it for a while."""
        self._is_cut = True
        self._page.route("**/_nicegui_ws/**", refuse)
        for socket in self._open:
            socket.close()
        self._open.clear()
        try:
            yield
        finally:
            self._is_cut = False
            self._page.unroute("**/_nicegui_ws/**")


def refuse(route: Any) -> None:
    """As a network that is not there."""
    route.abort()


def turned(desk: Desk) -> str:
    """A reason that nobody gave before, for which shadow mode now stands."""
    reason = f"turned meanwhile {uuid4().hex[:8]}"
    told(
        desk,
        "/strategist/switches",
        {"name": "LLM_SHADOW_MODE", "value": True, "operator": "operator", "reason": reason},
    )
    return reason


def test_a_lost_websocket_is_said_and_the_page_comes_back_to_what_is_true_then(desk: Desk) -> None:
    page = desk.visitor().page.context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    wire = Wire(page)
    page.goto(desk.url("/gate"))
    page.get_by_text(turned(desk)).wait_for()
    other = page.context.new_page()
    other.set_default_timeout(PATIENCE_MS)
    other.goto(desk.url("/gate"))
    other.get_by_text("Policy", exact=True).wait_for()
    other.evaluate("window.kept = 1")
    with wire.cut():
        page.get_by_role("alert").get_by_text(LOST).wait_for()
        assert "The page Panic does not need this connection." in page.evaluate(MORE)
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(SCREENSHOTS / "gate-without-the-websocket.png"))
        reason = turned(desk)
        other.get_by_text(reason).wait_for()
        assert not other.get_by_text(LOST).is_visible()
        assert page.get_by_text(reason).count() == 0
        dry_run(desk, page.context.new_page())
    page.get_by_text(reason).wait_for()
    page.get_by_text(LOST).wait_for(state="hidden")
    again = turned(desk)
    for each in (page, other):
        each.get_by_text(again).wait_for()
    assert other.evaluate("window.kept") == 1, "a page that lost nothing was not loaded again"
    page.context.close()


def dry_run(desk: Desk, page: Any) -> None:
    """The red button's rehearsal, which is a plain form."""
    page.goto(desk.url("/panic"))
    page.get_by_role("button", name="List what would be closed").click()
    page.get_by_role("heading", name="What an exit would do now").wait_for()
    page.close()


def test_without_the_analytics_pages_say_so_and_go_to_the_sign_in_when_it_is_back(desk: Desk) -> None:
    page = desk.see(desk.visitor(), "/gate")
    page.set_default_timeout(PATIENCE_MS)
    with without(desk, "services.analytics", signal.SIGKILL):
        page.get_by_role("alert").get_by_text(LOST).wait_for()
        would = told(desk, "/strategist/panic-exit", {"dry_run": True})
        assert would["state"] == "DRY_RUN", "the api needs no console"
    page.wait_for_url("**/sign-in?next=/gate")
    page.fill("#key", desk.key)
    page.click("button.act")
    page.wait_for_url("**/gate")
    page.get_by_text("verdicts of the policy are only logged").first.wait_for()
    page.context.close()


def test_a_page_outlives_a_pause_of_the_analytics(desk: Desk) -> None:
    page = desk.see(desk.visitor(), "/gate")
    page.set_default_timeout(PATIENCE_MS)
    with desk.still("services.analytics"):
        page.get_by_role("alert").get_by_text(LOST).wait_for()
        reason = turned(desk)
    page.get_by_text(reason).wait_for()
    page.get_by_text(LOST).wait_for(state="hidden")
    assert page.url == desk.url("/gate"), "nobody had to sign in again"
    page.context.close()
