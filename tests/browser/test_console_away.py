"""What the console shows when something it stands on is gone: the api, Postgres, the session, the key, its scopes."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from tests.acceptance.stack import eventually, gone
from tests.browser.conftest import Visit
from tests.browser.console_desk import SCREENSHOTS, Desk

pytestmark = pytest.mark.timeout(600)

PATIENCE_MS = 60_000


@contextmanager
def without(desk: Desk, part_of_command: str, number: signal.Signals) -> Generator[None]:
    """The stack without one of its processes, which is started again only afterwards."""
    assert desk.stack.process is not None
    supervisor = psutil.Process(desk.stack.process.pid)
    victim = desk.stack.child(part_of_command)
    supervisor.suspend()
    try:
        victim.send_signal(number)
        eventually(lambda: gone([victim]), what=f"{part_of_command} is gone", within_s=30)
        yield
    finally:
        supervisor.resume()


def line(page: Any, name: str) -> Any:
    """The line of one thing that the desk depends on."""
    return page.locator(".lexi-line").filter(has=page.get_by_text(name, exact=True))


def kept(visit: Visit, name: str) -> None:
    """A picture for who reads about it."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    visit.page.screenshot(path=str(SCREENSHOTS / f"{name}.png"), full_page=True)


def test_without_the_api_it_says_so_and_shows_what_postgres_knows(desk: Desk) -> None:
    visit = desk.visitor()
    page = desk.see(visit, "/")
    with without(desk, "services.api", signal.SIGKILL):
        line(page, "Api").get_by_text("does not answer").wait_for(timeout=PATIENCE_MS)
        line(page, "Model").get_by_text("only the api can ask it").wait_for(timeout=PATIENCE_MS)
        kept(visit, "now-without-the-api")
        newest = desk.settled("select count(*) from forecast_heads")
        assert page.locator("article").count() == int(newest)
        forecast = desk.one("select max(ts) from forecasts")
        eventually(
            lambda: True if desk.one("select max(ts) from forecasts") > forecast else None, what="the loop goes on"
        )
        assert line(page, "Database").get_by_text("well").count() == 1
        still_there(desk, visit)
    line(page, "Api").get_by_text("well").wait_for(timeout=PATIENCE_MS)
    page.context.close()


def still_there(desk: Desk, visit: Visit) -> None:
    """Every other page, freshly loaded while the api is away."""
    other = visit.page.context.new_page()
    other.set_default_timeout(PATIENCE_MS)
    for path, words in (
        ("/panic", "does not answer"),
        ("/gate", "does not answer"),
        ("/prompts", "does not answer"),
        ("/calls?key=policy", " UTC"),
        ("/forecasts?ticker=AAPL", "AAPL, 1d ahead"),
    ):
        other.goto(desk.url(path))
        other.get_by_text(words).first.wait_for()
    other.goto(desk.url("/panic"))
    said = other.locator("main").inner_text()
    assert "make panic" in said
    assert "Whether it is armed is not known now" in said
    other.close()


def test_without_postgres_it_says_so_and_comes_back(desk: Desk) -> None:
    visit = desk.visitor()
    page = desk.see(visit, "/")
    with without(desk, "/bin/postgres", signal.SIGINT):
        line(page, "Database").get_by_text("amiss").wait_for(timeout=PATIENCE_MS)
        kept(visit, "now-without-postgres")
        assert page.locator("article").count() > 0
        other = page.context.new_page()
        other.set_default_timeout(PATIENCE_MS)
        for path in ("/calls", "/forecasts", "/evaluations"):
            other.goto(desk.url(path))
            other.get_by_text("cannot be read now").wait_for()
        other.goto(desk.url("/gate"))
        other.get_by_text("Postgres does not answer").wait_for()
        other.goto(desk.url("/panic"))
        other.get_by_role("button", name="Panic: get flat now").wait_for()
    line(page, "Database").get_by_text("well").wait_for(timeout=PATIENCE_MS)
    other.goto(desk.url("/calls?key=policy"))
    other.get_by_role("link", name="UTC").first.wait_for()
    page.context.close()


def test_signing_out_ends_the_freshness_of_every_page(desk: Desk) -> None:
    visit = desk.visitor()
    page = desk.see(visit, "/")
    other = page.context.new_page()
    other.goto(desk.url("/panic"))
    other.get_by_role("button", name="out").click()
    other.wait_for_url("**/sign-in")
    page.wait_for_url("**/sign-in**", timeout=PATIENCE_MS)
    assert page.goto(desk.url("/calls")).url.startswith(desk.url("/sign-in"))
    page.context.close()


def test_a_key_that_is_taken_away_ends_it_too(desk: Desk) -> None:
    key = desk.another_key("ann", "read", "admin")
    page = desk.see(desk.visitor(key=key), "/")
    calls = page.context.new_page()
    calls.goto(desk.url("/calls"))
    calls.get_by_role("link", name="UTC").first.wait_for()
    desk.take_away(key)
    page.wait_for_url("**/sign-in**", timeout=PATIENCE_MS)
    assert calls.goto(desk.url("/calls")).url.startswith(desk.url("/sign-in"))
    page.context.close()


def test_a_key_that_may_only_read_sees_no_calls_and_turns_no_switch(desk: Desk) -> None:
    page = desk.see(desk.visitor(key=desk.another_key("bob", "read")), "/calls")
    assert page.get_by_text("lacks the scope admin").count() == 1
    assert page.get_by_role("link", name="UTC").count() == 0
    page.goto(desk.url("/gate"))
    page.get_by_role("button", name="Policy: Enforce").wait_for()
    for name in ("Policy: Enforce", "Policy: Go to shadow", "Kill switch: Turn it on", "Kill switch: Turn it off"):
        assert page.get_by_role("button", name=name).is_disabled()
    page.get_by_text("Your key lacks the scope switch").first.wait_for()
    page.context.close()
