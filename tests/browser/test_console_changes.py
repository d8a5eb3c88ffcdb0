"""What is turned and promoted from the page, by who presses, and kept: switches, ramps, promotions, roll-backs."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.browser.conftest import Visit
from tests.browser.console_desk import Desk, complaints, told

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


def test_the_kill_switch_is_on_for_so_many_minutes_and_off_again(desk: Desk, visit: Visit) -> None:
    page = desk.see(visit, "/gate")
    card = page.get_by_label("Kill switch", exact=True)
    card.get_by_label("Why").fill("the model talks nonsense")
    card.get_by_label("Minutes on").fill("241")
    press(page, "Kill switch: Turn it on", asked=False)
    card.get_by_text("it is turned on for 1 to 240 whole minutes").wait_for()
    assert "KILL_SWITCH" not in next_verdict(desk)
    card.get_by_label("Minutes on").fill("7")
    press(page, "Kill switch: Turn it on")
    card.get_by_text("on: the policy counts as allow").wait_for()
    assert standing(desk) == ["t", "the model talks nonsense", "7"]
    assert "KILL_SWITCH" in next_verdict(desk)
    card.get_by_label("Why").fill("it speaks sense again")
    press(page, "Kill switch: Turn it off", asked=False)
    card.get_by_text("off: the policy is asked").wait_for()
    assert standing(desk) == ["f", "it speaks sense again", ""]
    assert "KILL_SWITCH" not in next_verdict(desk)
    assert newest_presses(desk, 2) == [
        ["switch", "operator", "ORDER_GATE_DISABLED=true for 7 minutes", "the model talks nonsense", "t"],
        ["switch", "operator", "ORDER_GATE_DISABLED=false", "it speaks sense again", "t"],
    ]
    assert complaints(visit) == []


def next_verdict(desk: Desk) -> list[str]:
    """The reasons that the next order is told."""
    order = {"ticker": "AAPL", "side": "buy", "qty": 1, "ref_price": 80, "client_order_id": str(uuid4())}
    return told(desk, "/strategist/gate", order)["reasons"]


def standing(desk: Desk) -> list[str]:
    """How the kill switch stands in the database: its value, why, and for how many minutes it was set so."""
    minutes = "round(extract(epoch from expires_at - set_at) / 60)"
    found = f"select value, reason, {minutes} from switches where name = 'ORDER_GATE_DISABLED' order by id desc limit 1"
    return desk.rows(found)[0]


def test_a_version_is_ramped_by_the_page_and_taken_back(desk: Desk, visit: Visit) -> None:
    page = desk.see(visit, "/prompts/rationale")
    before = in_force(desk, "rationale")
    other = next(each for each in ("1.0.0", "1.1.0") if each != before)
    choose(page, "Version", other)
    choose(page, "Share to ramp to", "10 %")
    page.get_by_label("Why").fill("a first look")
    press(page, "Ramp to the share", sure=False)
    page.get_by_text("Nothing was done.").wait_for()
    press(page, "Ramp to the share")
    page.locator("dd", has_text=f"{other} 10 %").wait_for()
    arms = "select arms from activations where key = 'rationale' order by id desc limit 1"
    assert dict(json.loads(desk.one(arms))) == {before: 90, other: 10}
    _, known = desk.stack.get("API_PORT", "/llm/admin/prompts/rationale")
    assert (known["active"], known["arms"]) == (before, {before: 90, other: 10})
    page.get_by_label("Why").fill("seen enough")
    press(page, "Roll back")
    page.locator("dd", has_text="none runs").wait_for()
    assert in_force(desk, "rationale") == before
    assert newest_presses(desk, 2) == [
        ["ramp", "operator", f"rationale {other} to 10 %", "a first look", "t"],
        ["rollback", "operator", "rationale", "seen enough", "t"],
    ]
    assert complaints(visit) == []


def choose(page: Any, label: str, option: str) -> None:
    """Choose from a list."""
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


def test_a_prompt_is_promoted_and_rolled_back(desk: Desk, visit: Visit) -> None:
    page = desk.see(visit, "/prompts/rationale")
    before = in_force(desk, "rationale")
    other = next(each for each in ("1.0.0", "1.1.0") if each != before)
    choose(page, "Version", other)
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
