"""The console without a mouse: every link and control is reached by Tab, its focus is seen, and Enter works."""

from typing import Any

import pytest

from tests.acceptance.stack import eventually
from tests.browser.console_desk import Desk
from tests.browser.test_console_pages import PAGES

pytestmark = pytest.mark.timeout(600)

REACHABLE = """() => {
  const all = document.querySelectorAll(
    "a[href], button:not([disabled]), input:not([type=hidden], [disabled]), select, textarea, summary, [tabindex='0']");
  const seen = Array.from(all).filter(each => each.checkVisibility() && each.tabIndex >= 0
    && !each.closest("[inert], [aria-hidden=true], .q-dialog"));
  seen.forEach(each => each.dataset.awaited = "");
  return seen.length;
}"""
MET = """() => {
  const each = document.activeElement;
  if (!each || each === document.body) return null;
  delete each.dataset.awaited;
  each.scrollIntoView({block: "center"});
  const shown = each.closest(".q-field") || each;
  const box = shown.getBoundingClientRect();
  return [box.x, box.y, box.width, box.height, each.outerHTML.slice(0, 120)];
}"""
LEFT = """() => Array.from(document.querySelectorAll("[data-awaited]"), each => each.outerHTML.slice(0, 160))"""
NAMELESS = """() => Array.from(document.querySelectorAll("[data-awaited]"))
    .filter(each => !(each.ariaLabel || each.textContent.trim() || (each.labels && each.labels.length)))
    .map(each => each.outerHTML.slice(0, 160))"""


@pytest.mark.parametrize("name", PAGES)
def test_tab_reaches_everything_and_shows_where_it_is(desk: Desk, name: str) -> None:
    path = PAGES[name](desk)
    visit = desk.visitor()
    with desk.still("services.forecast", "follow_signal"):
        page = desk.see(visit, path)
        page.wait_for_timeout(1500)
        count = page.evaluate(REACHABLE)
        assert count > 8
        assert page.evaluate(NAMELESS) == []
        unseen = walk(page, count)
        assert page.evaluate(LEFT) == []
        assert unseen == []
    page.context.close()


def walk(page: Any, count: int) -> list[str]:
    """Press Tab until all was met; what looks the same with the focus as without it is returned."""
    unseen: list[str] = []
    for step in range(count + 12):
        page.keyboard.press("Tab")
        met = page.evaluate(MET)
        if met is None:
            break
        if step < 30:  # below, rows of a table repeat what was seen
            with_focus = picture(page, met)
            page.evaluate("document.activeElement.dataset.back = ''; document.activeElement.blur()")
            if with_focus == picture(page, met):
                unseen.append(met[4])
            page.evaluate("const one = document.querySelector('[data-back]'); delete one.dataset.back; one.focus()")
    return unseen


def picture(page: Any, met: list[Any]) -> bytes:
    """The place around an element as it is on the screen."""
    x, y, width, height, _ = met
    left, top = max(0, x - 6), max(0, y - 6)
    clip = {"x": left, "y": top, "width": min(width + 12, 1200 - left), "height": min(height + 12, 900 - top)}
    return page.screenshot(clip=clip, animations="disabled")


@pytest.mark.parametrize("path", ["/", "/panic"])
def test_the_first_stop_leads_past_the_navigation(desk: Desk, path: str) -> None:
    page = desk.see(desk.visitor(), path)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.id === 'main'")
    page.keyboard.press("Tab")
    assert page.evaluate("document.querySelector('#main').contains(document.activeElement)")


def test_signing_in_looking_and_signing_out_need_no_mouse(desk: Desk) -> None:
    page = desk.browser.chromium.new_page()
    page.goto(desk.url("/calls?key=policy"))
    page.keyboard.type(desk.key)
    page.keyboard.press("Enter")
    page.wait_for_url("**/calls?key=policy")
    page.get_by_role("link", name="UTC").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/calls/*-*")
    page.get_by_role("link", name="Panic").focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Panic exit").wait_for()
    page.get_by_role("button", name="out").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/sign-in")
    page.close()


def test_who_goes_through_the_stream_keeps_the_focus_while_forecasts_come(desk: Desk) -> None:
    page = desk.see(desk.visitor(), "/")
    first = page.locator("article a").first
    first.focus()
    page.get_by_text("New ones wait").wait_for()
    here, written = first.get_attribute("href"), desk.one("select max(ts) from forecasts")
    eventually(lambda: True if desk.one("select max(ts) from forecasts") > written else None, what="a newer forecast")
    page.wait_for_timeout(1500)
    assert page.evaluate("document.activeElement.getAttribute('href')") == here
    page.evaluate("document.activeElement.blur()")
    page.wait_for_function("each => !document.querySelector(`article a[href='${each}']`)", arg=here)
    page.context.close()
