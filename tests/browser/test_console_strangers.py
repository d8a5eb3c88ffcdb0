"""What a model and strangers wrote, on every page where it can come up: it is text, and nothing of it ever runs."""

from uuid import uuid4

import pytest

from tests.acceptance.stack import eventually
from tests.browser.conftest import Visit
from tests.browser.console_desk import HOSTILE, Desk, complaints, told
from tests.browser.test_console_pages import PAGES

pytestmark = pytest.mark.timeout(600)

RAN = """() => [window.ran, document.querySelectorAll(
    "main :is(img, iframe, script, object, embed, [onload], [onerror]), a[href^=javascript]"
).length, document.querySelectorAll("main").length]"""
WHOLE = "document.body.innerText"
"""What can be read on the page."""


@pytest.fixture(scope="module")
def visit(desk: Desk) -> Visit:
    """A signed-in visitor; a hostile switch stands in the database before the first page is seen."""
    turn = {"name": "LLM_SHADOW_MODE", "value": True, "operator": "<b>ann</b>", "reason": HOSTILE[:200]}
    told(desk, "/strategist/switches", turn)
    return desk.visitor()


def harmless(visit: Visit) -> None:
    """Nothing ran, nothing of it became an element, and no window opened."""
    assert visit.page.evaluate(RAN) == [None, 0, 1]
    assert complaints(visit) == []
    assert not [each for each in visit.asked_for if each.endswith("/x")]


@pytest.mark.parametrize("name", PAGES)
def test_no_page_runs_it(desk: Desk, visit: Visit, name: str) -> None:
    desk.see(visit, PAGES[name](desk))
    harmless(visit)


def shows(desk: Desk, visit: Visit, path: str, words: str) -> None:
    page = desk.see(visit, path)
    flat = " ".join(words.split())
    eventually(
        lambda: True if flat in " ".join(page.evaluate(WHOLE).split()) else None,
        what=f"{path} shows {words[:60]}",
        within_s=15,
    )
    harmless(visit)


def test_a_rationale_is_text(desk: Desk, visit: Visit) -> None:
    shows(desk, visit, "/", HOSTILE)


def test_headlines_rationale_and_raw_reply_of_a_decision_are_text(desk: Desk, visit: Visit) -> None:
    where = "f.features -> 'llm' -> 'inputs' ->> 'headlines' like '%%onerror%%'"
    found = f"select '/forecasts/' || id from forecasts f where {where} and ticker = '%s' order by ts limit 1"
    shows(desk, visit, desk.one(found % "AAPL"), f"AAPL: {HOSTILE}")
    shows(desk, visit, desk.one(found % "MSFT"), f"MSFT: {HOSTILE}")
    raw = visit.page.get_by_role("group", name="raw reply of the policy").inner_text()
    assert " ".join(raw.split()) == " ".join(HOSTILE.split())


def test_a_call_is_text(desk: Desk, visit: Visit) -> None:
    call = desk.one("select id from llm_calls where prompt_key = 'policy' and not success order by ts limit 1")
    shows(desk, visit, f"/calls/{call}", HOSTILE)


def test_a_strategy_an_order_id_and_a_switch_reason_are_text(desk: Desk, visit: Visit) -> None:
    name, strategy = f"<b>x</b>'\"><svg/onload=1>{uuid4()}", f"by {HOSTILE[:60]}"
    order = {"ticker": "AAPL", "side": "buy", "qty": 1, "ref_price": 80, "client_order_id": name}
    with desk.still("follow_signal"):
        told(desk, "/strategist/gate", order | {"strategy": strategy})
        shows(desk, visit, "/gate", f"{strategy}, key operator")
        shows(desk, visit, "/gate", name)
    shows(desk, visit, "/gate", HOSTILE[:200])
    shows(desk, visit, "/gate", "<b>ann</b>")


def test_an_evaluation_is_text(desk: Desk, visit: Visit) -> None:
    shows(desk, visit, "/evaluations", f"nightly {HOSTILE}")
    shows(desk, visit, desk.one("select '/evaluations/' || id from evaluations limit 1"), f"nightly {HOSTILE}")


def test_a_halt_is_text(desk: Desk, visit: Visit) -> None:
    halt = f"""insert into halts (id, reason, halted_at, halted_until)
        values (gen_random_uuid(), $x${HOSTILE}$x$, now(), now())"""
    desk.stack.sql(halt)
    try:
        shows(desk, visit, "/", HOSTILE)
        shows(desk, visit, "/panic", HOSTILE)
    finally:
        desk.stack.sql("update halts set rearmed_at = now(), rearmed_by = 'ann', rearm_reason = 'tried'")


@pytest.mark.parametrize("path", ["/forecasts?ticker=", "/calls?key=", "/prompts/policy?old=", "/evaluations?first="])
def test_what_an_address_says_is_text(desk: Desk, visit: Visit, path: str) -> None:
    desk.see(visit, path + "%3Cimg%20src=x%20onerror=%22window.ran=4%22%3E%22%27%3E")
    harmless(visit)
