"""The report of an evaluation as a reader gets it: nothing runs in it, nothing is fetched, its numbers are true."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from libs.evaluation.report.comparison import comparison_page
from libs.evaluation.report.page import page, shown_cases
from libs.evaluation.report.paths import found_at
from tests.browser.conftest import Browser, Visit
from tests.unit.evaluation_report_cases import HEADLINES, ORDER, Json, case, cases, empty, summary
from tests.unit.evaluation_report_reading import Shown, leaves, says
from tests.unit.test_evaluation_report_comparison import compared, summarised, wicked
from tests.unit.test_evaluation_report_page import HOSTILE, everywhere

NUMBERS = """() => Array.from(document.querySelectorAll("[data-figure]"), each =>
    [each.dataset.figure, each.dataset.value, each.dataset.unit, each.textContent])"""
# Whether what is written shows: `checkVisibility` knows of closed details, of display and of visibility.
UNSEEN = """() => Array.from(document.querySelectorAll("[data-figure]"))
    .filter(each => !each.closest("details") && !(each.checkVisibility() && each.getBoundingClientRect().width > 0))
    .map(each => each.dataset.figure)"""
WIDER = """() => Array.from(document.querySelectorAll("main *"))
    .filter(each => !each.closest("svg, .table, figure table") && each.getBoundingClientRect().right > innerWidth + 1)
    .map(each => `${each.tagName} ${each.className} ${each.textContent.slice(0, 40)}`)"""
CONTRAST = """() => {
  const light = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number)
    .map(part => part / 255).map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = each => {
    for (let at = each; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (colour !== "rgba(0, 0, 0, 0)" && colour !== "transparent") return colour;
    }
    return getComputedStyle(document.documentElement).backgroundColor;
  };
  const texts = "p, td, th, dd, dt, li, b, h1, h2, h3, h4, pre, mark, .tag, .hid, .small";
  return Array.from(document.querySelectorAll(texts))
    .filter(each => each.checkVisibility() && each.textContent.trim())
    .map(each => {
      const [one, other] = [light(getComputedStyle(each).color), light(behind(each))].sort((a, b) => b - a);
      return [(one + 0.05) / (other + 0.05), `${each.tagName} ${each.className} ${each.textContent.slice(0, 40)}`];
    })
    .filter(([ratio]) => ratio < 4.5).map(([ratio, what]) => `${ratio.toFixed(2)} ${what}`);
}"""
"""Texts with less contrast than WCAG 2.2 asks of body text (4.5 to 1)."""

Scheme = Literal["light", "dark"]


def opened(browser: Browser, html: str, folder: Path, *, width: int = 1200, scheme: Scheme = "light") -> Visit:
    """A page, opened from a file; it may neither complain nor ask for anything but itself."""
    file = folder / "report.html"
    file.write_text(html, encoding="utf-8")
    visit = browser.open(file, width=width, scheme=scheme)
    assert visit.complaints == []
    assert visit.asked_for == [file.as_uri()]
    return visit


def checked(visit: Visit, found: Json) -> set[str]:
    """The paths of all numbers that the browser shows, each held against the document."""
    numbers: list[list[str]] = visit.page.evaluate(NUMBERS)
    assert numbers
    for path, value, unit, text in numbers:
        exact = found_at(found, path)
        assert json.loads(value) == exact, path
        assert says(Shown(path, value, unit, text), exact), (path, text)
    assert visit.page.evaluate(UNSEEN) == []
    return {path for path, *_ in numbers}


def whole(found: Json) -> dict[str, Any]:
    return {
        name: case(name, headlines=((ORDER, *HEADLINES) if "hostile" in name else HEADLINES))
        for name in shown_cases(found)
    }


def test_its_numbers_are_those_of_summary_json(browser: Browser, tmp_path: Path) -> None:
    made = summarised()
    (tmp_path / "summary.json").write_text(json.dumps(made), encoding="utf-8")
    found: Json = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    paths = checked(opened(browser, page(found, whole(found)), tmp_path), found)
    figures = {f"versions.{each}" for each in leaves(found["versions"]) if ".figures." in each}
    assert figures
    assert figures <= paths


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 768, 390, 320])
def test_it_fits_and_can_be_read(browser: Browser, tmp_path: Path, width: int, scheme: Scheme) -> None:
    found = summary()
    visit = opened(browser, page(found, cases(found)), tmp_path, width=width, scheme=scheme)
    checked(visit, found)
    assert visit.page.evaluate("document.scrollingElement.scrollWidth") <= width
    assert visit.page.evaluate(WIDER) == []
    assert visit.page.evaluate(CONTRAST) == []


def test_light_and_dark_are_two_faces(browser: Browser, tmp_path: Path) -> None:
    html, ground = page(empty(), {}), "getComputedStyle(document.body).backgroundColor"
    faces = {opened(browser, html, tmp_path, scheme=each).page.evaluate(ground) for each in ("light", "dark")}
    assert len(faces) == 2


def test_the_verdict_is_what_one_sees_first(browser: Browser, tmp_path: Path) -> None:
    visit = opened(browser, page(summary(), {}), tmp_path)
    box = visit.page.locator(".answer").bounding_box()
    assert box["y"] + box["height"] < 900
    assert "Missed: 2 of 4 thresholds." in visit.page.locator(".answer").inner_text()


def test_what_is_folded_opens_without_a_script(browser: Browser, tmp_path: Path) -> None:
    visit = opened(browser, page(summary(), {}), tmp_path)
    rows = visit.page.locator("figure details").first.locator("tr").last
    assert not rows.is_visible()
    visit.page.locator("figure summary").first.click()
    assert rows.is_visible()


@pytest.mark.parametrize("evil", HOSTILE, ids=range(len(HOSTILE)))
def test_what_a_stranger_wrote_does_nothing(browser: Browser, tmp_path: Path, evil: str) -> None:
    for html in (page(*everywhere(evil)), comparison_page(wicked(evil))):
        visit = opened(browser, html, tmp_path, width=390)
        assert visit.page.locator("script, iframe, img, object, embed, link, form").count() == 0
        assert visit.page.evaluate("document.scrollingElement.scrollWidth") <= 390
        visit.page.close()


@pytest.mark.parametrize("width", [1200, 390])
def test_a_comparison_is_true_too(browser: Browser, tmp_path: Path, width: int) -> None:
    found = compared()
    visit = opened(browser, comparison_page(found), tmp_path, width=width, scheme="dark")
    checked(visit, found)
    assert visit.page.evaluate("document.scrollingElement.scrollWidth") <= width
    assert visit.page.evaluate(CONTRAST) == []
