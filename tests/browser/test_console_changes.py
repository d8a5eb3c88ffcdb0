"""What is turned and promoted from the page, by who presses, and kept: the switches, a promotion and its roll-back."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.conftest import Visit
from tests.browser.console_desk import Desk, complaints

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def visit(desk: Desk) -> Iterator[Visit]:
    """Somebody with the operator's key."""
    visitor = desk.visitor()
    yield visitor
    visitor.page.context.close()


def newest_presses(desk: Desk, most: int) -> list[list[str]]:
    return desk.rows(
        f"select action, key_name, subject, reason, outcome like '20%' from presses order by id desc limit {most}"
    )[::-1]


def press(page: Any, button: str, *, sure: bool = True, asked: bool = True) -> None:
    """Press a button, and answer its second question where there is one."""
    page.get_by_role("button", name=button, exact=True).click()
    if asked:
        page.get_by_role("button", name="Yes, do it" if sure else "Leave it as it is").click()


def test_a_switch_is_turned_and_kept_with_who_and_why(desk: Desk, visit: Visit) -> None:
    page = desk.see(visit, "/gate")
    card = page.get_by_label("Policy", exact=True)
    press(page, "Policy: Enforce", asked=False)
    card.get_by_text("Nothing was done: say why.").wait_for()
    card.get_by_label("Why").fill("trial over")
    press(page, "Policy: Enforce", asked=False)
    card.get_by_text("enforce: what the policy denies is refused").wait_for()
    card.get_by_label("Why").fill("not yet after all")
    press(page, "Policy: Go to shadow", sure=False)
    card.get_by_text("Nothing was done.").wait_for()
    press(page, "Policy: Go to shadow")
    card.get_by_text("shadow: verdicts of the policy are only logged").wait_for()
    assert newest_presses(desk, 2) == [
        ["switch", "operator", "LLM_SHADOW_MODE=false", "trial over", "t"],
        ["switch", "operator", "LLM_SHADOW_MODE=true", "not yet after all", "t"],
    ]
    switch = "select value, reason from switches where name = 'LLM_SHADOW_MODE' order by id desc limit 1"
    assert desk.rows(switch) == [["t", "not yet after all"]]
    assert complaints(visit) == []


def test_a_prompt_is_promoted_and_rolled_back(desk: Desk, visit: Visit) -> None:
    page = desk.see(visit, "/prompts/rationale")
    before = in_force(desk, "rationale")
    other = next(each for each in ("1.0.0", "1.1.0") if each != before)
    page.get_by_label("Version", exact=True).click()
    page.get_by_role("option", name=other).click()
    page.get_by_label("Why").fill("reads better")
    press(page, "Promote to every unit")
    stands(page, other)
    assert in_force(desk, "rationale") == other
    page.get_by_label("Why").fill("it does not")
    press(page, "Roll back")
    stands(page, before)
    assert in_force(desk, "rationale") == before
    rows = newest_presses(desk, 2)
    assert [(row[1], row[3], row[4]) for row in rows] == [
        ("operator", "reads better", "t"),
        ("operator", "it does not", "t"),
    ]
    assert desk.rows("select count(*) from activations where key = 'rationale'")[0][0] >= "2"
    assert complaints(visit) == []


def in_force(desk: Desk, key: str) -> str:
    """The version in force, as the api goes by it."""
    return desk.stack.get("API_PORT", f"/llm/admin/prompts/{key}")[1]["active"]


def stands(page: Any, version: str) -> None:
    """Wait until the page says that a version is in force."""
    page.locator("dt", has_text="in force").locator("+ dd").get_by_text(version, exact=True).wait_for()
