"""Every row of the runbook played through: the trouble is made, and the commands of the page show it and end it."""

import json
from typing import Any

import pytest

from tests.acceptance.stack import ROOT, eventually
from tests.compose.model import LOOPBACK
from tests.compose.page import Page
from tests.compose.pasting import SHELL, until
from tests.compose.pasting import paste as do
from tests.compose.stack import ComposeStack, at_the_broker, judged, latest
from tests.compose.test_stack import entry, order
from tests.fakes.engine import Fault

pytestmark = pytest.mark.timeout(2400)

RUNBOOK = Page(ROOT / "docs" / "runbook.md")
REFUSED = "Connection refused"
NOT_OK = "ok:false though Lexi is up"
OOM = "CUDA out of memory"
DENIED = "Policy rejects every trade"
SUMMARIES = "Summaries are missing"
REPLAY = "Replay returns a cached response"
FLAT = "Need immediate flat"
POSTGRES = "Postgres was away"


def paste(stack: ComposeStack, section: str, step: str) -> str:
    """Do what the runbook says; what it printed."""
    return do(stack, RUNBOOK, section, step)


def answer(shown: str) -> dict[str, Any]:
    """The last line that is an object of JSON; what programs tell meanwhile stands in others."""
    return json.loads([line for line in shown.splitlines() if line.startswith("{")][-1])


def test_the_first_look_shows_everything(stack: ComposeStack) -> None:
    assert RUNBOOK.commands("First, in your shell", "shell", house="compose") == SHELL
    shown = until(lambda: paste(stack, "First, in your shell", "overview"), '"ok":true')
    assert '"halted":false' in shown
    assert shown.count("green  lexi") == 3
    assert "red " not in shown
    assert "postgres" in paste(stack, "First, in your shell", "containers")


def test_connection_refused_because_lexi_is_down(stack: ComposeStack) -> None:
    stack.model.stop()
    shown = until(lambda: paste(stack, REFUSED, "look"), "yellow lexi: down: no connection to host.docker.internal")
    assert "Connection refused" in shown
    assert "nothing listens on" in shown
    eventually(judged(stack, status="unavailable"), what="forecasts go on without the model's word")
    stack.model.start()
    until(lambda: paste(stack, REFUSED, "over"), '"ok":true')
    eventually(judged(stack), what="the model's word is back, and nothing was restarted")


def test_connection_refused_because_lexi_listens_on_loopback_only(stack: ComposeStack) -> None:
    stack.model.stop()
    stack.model.start(LOOPBACK)
    shown = until(lambda: paste(stack, REFUSED, "look"), "yellow lexi: down: no connection")
    assert f"{LOOPBACK}:{stack.model.port}" in shown
    with pytest.raises(AssertionError, match="ConnectionRefusedError"):
        paste(stack, REFUSED, "inside")
    stack.model.mend()
    assert "reached" in paste(stack, REFUSED, "inside")
    until(lambda: paste(stack, REFUSED, "over"), '"ok":true')


def test_not_ok_because_the_name_differs_and_env_mends_it(stack: ComposeStack) -> None:
    stack.model.engine.model = "lexi-70b"
    shown = until(lambda: paste(stack, NOT_OK, "look"), '"ok":false', "answered 404", "does not exist")
    assert "green  lexi" in shown
    assert '"lexi-70b"' in paste(stack, NOT_OK, "names")
    written = stack.folder / ".env"
    before = written.read_text()
    try:
        written.write_text(f"{before}LLM_MODEL=lexi-70b\n")
        paste(stack, NOT_OK, "mend")
        stack.until_ready()
        until(lambda: paste(stack, NOT_OK, "look"), '"ok":true')
    finally:
        written.write_text(before)
        paste(stack, NOT_OK, "mend")


def test_not_ok_because_the_key_differs(stack: ComposeStack) -> None:
    right = stack.model.engine.api_key
    try:
        stack.model.engine.api_key = "another"
        until(lambda: paste(stack, NOT_OK, "look"), '"ok":false', "answered 401")
    finally:
        stack.model.engine.api_key = right
    until(lambda: paste(stack, NOT_OK, "look"), '"ok":true')


def test_not_ok_because_it_answers_something_else(stack: ComposeStack) -> None:
    stack.model.engine.reply = "I am well, thank you."
    until(lambda: paste(stack, NOT_OK, "look"), '"ok":false', "choice: expected one of OK, NO")


def test_what_we_show_when_the_cards_memory_runs_out(stack: ComposeStack) -> None:
    said = "CUDA out of memory. Tried to allocate 2.00 GiB"
    stack.model.engine.fault_body = json.dumps({"error": {"message": said, "type": "InternalServerError", "code": 500}})
    stack.model.engine.fault = Fault.STATUS
    until(lambda: paste(stack, OOM, "look"), "answered 500", "yellow lexi: down", '"status":"unavailable"')
    stack.model.stop()  # in the end the engine dies
    until(lambda: paste(stack, OOM, "look"), "yellow lexi: down: no connection")
    stored = stack.sql("select count(*) from forecasts")[0]
    eventually(lambda: stack.sql("select count(*) from forecasts")[0] != stored or None, what="forecasts are stored")
    stack.model.mend()
    until(lambda: paste(stack, OOM, "over"), '"ok":true', '"status":"ok"')


def denied(stack: ComposeStack) -> dict[str, Any]:
    """An entry that is refused by the policy."""

    def refused() -> dict[str, Any] | None:
        status, told = stack.get("API_PORT", "/strategist/orders", body=order(stack))
        return told if status == 409 and "POLICY_DENY" in told["reasons"] else None

    return eventually(refused, what="the policy refuses an entry")


def test_policy_rejects_every_trade(stack: ComposeStack) -> None:
    stack.model.deny_everything()
    paste(stack, DENIED, "back")  # enforce
    assert denied(stack)["mode"] == "enforce"
    shown = paste(stack, DENIED, "look")
    assert "POLICY_DENY" in shown
    assert '"halted":false' in shown
    assert '"COVERAGE"' in paste(stack, DENIED, "raw")
    paste(stack, DENIED, "gate-off")
    told = entry(stack)
    assert (told["verdict"], told["would_have"], told["mode"]) == ("allow", "deny", "disabled")
    assert "KILL_SWITCH" in told["reasons"]
    paste(stack, DENIED, "back")
    assert denied(stack)["mode"] == "enforce"
    paste(stack, DENIED, "shadow")
    told = entry(stack)
    assert (told["verdict"], told["would_have"], told["mode"]) == ("allow", "deny", "shadow")


def test_a_prompt_is_taken_back(stack: ComposeStack) -> None:
    promote = ["make", "promote", "KEY=policy", "VERSION=1.1.0", "REASON=to try it", "OPERATOR=ann"]
    done = stack.run("docker", "compose", "run", "--rm", "-T", "tools", *promote)
    assert done.returncode == 0, done.stderr

    def version() -> Any:
        return stack.get("API_PORT", "/llm/admin/prompts/policy")[1]["active"]

    eventually(lambda: version() == "1.1.0" or None, what="1.1.0 is in force")
    paste(stack, DENIED, "rollback")
    eventually(lambda: version() == "1.0.0" or None, what="1.0.0 is in force again")


def test_summaries_are_missing(stack: ComposeStack) -> None:
    assert '"summary":""' in paste(stack, SUMMARIES, "look")  # nothing to sum up
    paste(stack, SUMMARIES, "mend")
    until(lambda: paste(stack, SUMMARIES, "look"), "A steady drift on ordinary volume.", 'outcome="ok"')
    stack.model.stop()
    post = {"source": "desk", "external_id": "p-2", "ticker": "AAPL", "ts": "2012-08-21T19:00:00Z"}
    assert stack.get("API_PORT", "/ingest/social", body=[post | {"handle": "@desk", "text": "More."}])[0] == 200
    shown = until(lambda: paste(stack, SUMMARIES, "look"), '"summary":""', 'outcome="unavailable"')
    assert '"text":"More."' in shown
    stack.model.mend()
    until(lambda: paste(stack, SUMMARIES, "look"), "A steady drift on ordinary volume.")


def test_a_replay_from_the_record_and_a_forced_one(stack: ComposeStack) -> None:
    eventually(judged(stack), what="a judged forecast")
    call = answer(paste(stack, REPLAY, "look"))["calls"][0]["id"]
    status, recorded = stack.get("API_PORT", "/llm/admin/replay", body={"id": call})
    assert (status, recorded["cached"]) == (200, True)
    forced = answer(paste(stack, REPLAY, "mend"))
    assert (forced["cached"], forced["success"]) == (False, True)
    assert stack.sql(f"select count(*) from llm_calls where replay_of = '{forced['replay_of']}'") == ["1"]


def test_immediate_flat_with_api_and_postgres_down(stack: ComposeStack) -> None:
    entry(stack)
    eventually(lambda: at_the_broker(stack)[0] or None, what="there is something to close")
    stack.compose("stop", "api", "postgres")
    shown = paste(stack, FLAT, "flat")
    assert answer(shown)["state"] == "FLAT", shown
    assert at_the_broker(stack) == ([], [])
    stack.compose("up", "-d", "--wait")
    stack.until_ready()
    status, told = stack.get("API_PORT", "/strategist/orders", body=order(stack))
    assert (status, "HALTED" in told["reasons"]) == (409, True)
    assert '"halted":true' in paste(stack, FLAT, "account")
    assert "re-arm after that" in paste(stack, FLAT, "rearm")
    eventually(
        lambda: stack.sql("select 1 from halts where rearmed_at is null") or None, what="the halt is in Postgres"
    )
    stack.sql("update halts set halted_until = now()")  # the hour has passed
    paste(stack, FLAT, "rearm")
    assert '"halted":false' in paste(stack, FLAT, "account")
    paste(stack, FLAT, "halt")  # entries stopped, nothing closed
    eventually(lambda: stack.get("API_PORT", "/strategist/halt")[1]["halted"] or None, what="halted by hand")
    eventually(lambda: stack.sql("select 1 from halts where rearmed_at is null") or None, what="it has its row too")
    stack.sql("update halts set halted_until = now()")  # its hour has passed
    until(lambda: paste(stack, FLAT, "rearm") + paste(stack, FLAT, "account"), '"halted":false')
    entry(stack)


def test_postgres_was_away(stack: ComposeStack) -> None:
    stack.compose("stop", "postgres")
    eventually(lambda: "red    database" in stack.ready("API_PORT")[1] or None, what="red database")
    assert "postgres" in paste(stack, POSTGRES, "start")
    stack.until_ready()
    assert "rows hold" in paste(stack, POSTGRES, "chain")


def test_forecasts_did_not_stop_over_all_this(stack: ComposeStack) -> None:
    eventually(judged(stack), what="a judged forecast")
    assert {each["ticker"] for each in latest(stack)} == {"AAPL", "FB", "GOOG", "IBM", "MSFT"}
