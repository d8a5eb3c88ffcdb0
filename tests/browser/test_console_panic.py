"""The red button in a browser without scripts: dry run, wrong word, the real one, flat, re-arm, and who pressed."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.stack import eventually
from tests.browser.conftest import Visit
from tests.browser.console_desk import HOSTILE, Desk

pytestmark = pytest.mark.timeout(600)

PRESSES = "select action, key_name, reason, outcome from presses where action ~ 'panic|arm' order by id"


@pytest.fixture(scope="module")
def plain(desk: Desk) -> Iterator[Visit]:
    """Somebody signed in, without scripts."""
    visit = desk.visitor(width=390, scripts=False)
    yield visit
    visit.page.context.close()


def pressed(desk: Desk, before: int) -> list[list[str]]:
    return desk.rows(PRESSES)[before:]


def at_the_broker(desk: Desk) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Positions and open orders as the broker itself has them."""
    return desk.stack.get("PAPER_PORT", "/v2/positions")[1], desk.stack.get("PAPER_PORT", "/v2/orders")[1]


def test_without_scripts_the_desk_is_got_flat_and_entries_are_let_in_again(desk: Desk, plain: Visit) -> None:
    page, before = plain.page, len(desk.rows(PRESSES))
    eventually(lambda: at_the_broker(desk)[0] or None, what="there is something to close")
    with desk.still("follow_signal"):
        held, before_it = at_the_broker(desk)[0], quantities(desk)
        rehearse(page, held)
        refuse_the_wrong_word(desk, page)
        assert quantities(desk) == before_it
        assert [row[0] for row in pressed(desk, before)] == ["panic dry run"]
        get_flat(desk, page)
        assert at_the_broker(desk) == ([], [])
        rearm(desk, page)
    rows = [(action, key, outcome) for action, key, _, outcome in pressed(desk, before)]
    assert rows == [
        ("panic dry run", "operator", "200 done"),
        ("panic exit", "operator", "FLAT"),
        ("re-arm", "operator", "200 done"),
    ]


def quantities(desk: Desk) -> dict[str, str]:
    """What is held, whatever it is worth by now."""
    return {each["symbol"]: each["qty"] for each in at_the_broker(desk)[0]}


def rehearse(page: Any, held: list[dict[str, Any]]) -> None:
    """The dry run lists what is held at the broker."""
    page.get_by_role("button", name="List what would be closed").click()
    would = page.locator("section", has_text="What an exit would do now").locator("tbody tr")
    shown = [row.split("\t") for row in would.all_inner_texts()]
    assert {row[1] for row in shown if row[0] == "close"} == {each["symbol"] for each in held}


def refuse_the_wrong_word(desk: Desk, page: Any) -> None:
    """The browser refuses it without scripts, and so does the server where a browser does not."""
    page.get_by_label("Reason", exact=True).fill("a runaway")
    page.get_by_label("Type PANIC").fill("panic")
    page.get_by_role("button", name="Panic: get flat now").click()
    assert page.locator("#confirm:invalid").count() == 1
    token = page.locator("form[action='/panic'] input[name=form_token]").get_attribute("value")
    form = {"form_token": token, "confirm": "panic", "reason": "a runaway", "minutes": "0"}
    answer = page.context.request.post(desk.url("/panic"), form=form)
    assert "Nothing was done: type PANIC to confirm." in answer.text()
    answer = page.context.request.post(desk.url("/panic"), form=form | {"form_token": "another", "confirm": "PANIC"})
    assert "This form is out of date" in answer.text()


def get_flat(desk: Desk, page: Any) -> None:
    """The real one: the page looks again by itself until the end state stands there in words."""
    page.goto(desk.url("/panic"))
    page.get_by_label("Reason", exact=True).fill(f"a runaway {HOSTILE}"[:200])
    page.get_by_label("Minutes until entries").fill("0")
    page.get_by_label("Type PANIC").fill("PANIC")
    page.get_by_role("button", name="Panic: get flat now").click()
    page.get_by_role("heading", name="The latest exit ended FLAT at 20").wait_for(timeout=120_000)
    page.locator("meta[http-equiv=refresh]").wait_for(state="detached")
    assert "Nothing was held and nothing was open then" in page.locator("main").inner_text()
    page.get_by_text(f"by operator: a runaway {HOSTILE}"[:60]).wait_for()
    page.get_by_text("Steps, newest first").click()
    assert page.locator("details tbody tr").count() > 3
    page.get_by_text(f"Entries are halted: a runaway {HOSTILE}"[:60]).wait_for()


def rearm(desk: Desk, page: Any) -> None:
    """Folded away, with a word of its own."""
    opener = page.get_by_text("Re-arm", exact=True)
    assert not page.get_by_label("Type REARM").is_visible()
    opener.click()
    page.get_by_label("Why it is safe").fill("it was a rehearsal")
    page.get_by_label("Type REARM").fill("REARM")
    page.get_by_role("button", name="Let entries in again").click()
    page.get_by_text("Entries are let in again.").wait_for()
    assert desk.rows("select count(*) from halts where rearmed_at is null") == [["0"]]
    latest = page.locator("section", has_text="The latest exit ended FLAT")
    assert "by operator (key operator): it was a rehearsal" in latest.inner_text()
    assert latest.get_attribute("class") == ""


def test_a_live_page_signs_out_where_one_is(desk: Desk) -> None:
    page = desk.see(desk.visitor(), "/gate")
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(desk.url("/sign-in**"))
    page.goto(desk.url("/gate"))
    assert page.url.startswith(desk.url("/sign-in"))
    page.context.close()


@pytest.mark.parametrize(("width", "seen"), [(390, True), (1200, False)])
def test_a_phone_is_told_of_the_columns_that_it_hides(desk: Desk, width: int, seen: bool) -> None:
    page = desk.see(desk.visitor(width=width), "/calls")
    assert page.get_by_text("More columns to the right").first.is_visible() is seen
    page.context.close()


def test_a_key_without_the_scopes_finds_no_button(desk: Desk) -> None:
    page = desk.visitor(scripts=False, key=desk.another_key("reader", "read")).page
    page.goto(desk.url("/panic"))
    assert page.locator("button.act").count() == 0
    assert page.get_by_text("Your key lacks the scope panic").count() == 1
    assert page.get_by_text("Your key lacks the scope rearm").count() == 1
    page.context.close()
