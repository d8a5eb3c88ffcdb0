"""One id from an HTTP request, or a tick, to calls, verdict and order, in logs and rows; and nothing secret in any log.

The markers are planted wherever a text comes into the house: prompts, bodies, headlines, replies, wrong keys, queries.
"""

import json
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.stack import ModelServer, RunningStack, eventually

pytestmark = [pytest.mark.xdist_group("one_id"), pytest.mark.timeout(600)]

MARKER = "ZEBRAFINCH"
ENGINE_KEY = f"sk-{MARKER}-engine"
WRONG_KEY = f"lexi_{MARKER}_wrong_key_of_a_stranger"
_numbers = count()


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    server = ModelServer()
    server.start()
    yield server
    server.send(signal.SIGKILL)


@pytest.fixture(scope="module")
def stack(model: ModelServer, state_folder: Path) -> Iterator[RunningStack]:
    running = RunningStack(
        state_folder,
        LLM_BASE_URL=f"http://127.0.0.1:{model.port}/v1",
        LLM_API_KEY=ENGINE_KEY,
        FORECAST_INTERVAL_S="2",
        MAX_ORDERS_PER_MIN="600",
        ENABLE_PANIC_EXIT="1",
    )
    running.start()
    running.wait_until_up()
    yield running
    running.stop()


def send(stack: RunningStack, path: str, body: object = None, **more: str) -> tuple[int, dict[str, Any], str]:
    """Status, JSON and the request's id, which is the caller's own."""
    request_id = f"test-{next(_numbers)}"
    key = more.pop("key", "") or (stack.state / "operator.key").read_text().strip()
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{stack.ports[more.pop('port', 'API_PORT')]}{path}",
        data=None if body is None else content,
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json", "X-Request-Id": request_id},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, raw, told = answer.status, answer.read(), answer.headers["X-Request-Id"]
    except urllib.error.HTTPError as error:
        status, raw, told = error.code, error.read(), error.headers["X-Request-Id"]
    assert told == request_id
    return status, json.loads(raw), request_id


def lines(stack: RunningStack, service: str, request_id: str) -> list[dict[str, Any]]:
    """The lines of a service's log that carry an id."""
    text = (stack.state / "logs" / f"{service}.log").read_text()
    found = (json.loads(line) for line in text.splitlines() if line.startswith("{"))
    return [line for line in found if line.get("request_id") == request_id]


def line_of(stack: RunningStack, service: str, request_id: str, *, event: str) -> dict[str, Any]:
    """The one line of an event."""
    found = [line for line in lines(stack, service, request_id) if line["event"] == event]
    assert len(found) == 1, found
    return found[0]


def calls_of(stack: RunningStack, request_id: str, *, least: int = 1) -> list[str]:
    """The ids of the calls on record that follow from an id."""

    def look() -> list[str] | None:
        found = stack.sql(f"select id from llm_calls where request_id = '{request_id}' order by id")
        return found if len(found) >= least else None

    return eventually(look, what=f"{least} calls of {request_id}")


def test_a_request_leads_to_its_call_in_the_log_and_on_record(stack: RunningStack) -> None:
    status, told, request_id = send(stack, "/llm/chat", {"user": f"say something of {MARKER}"})
    assert status == 200, told
    assert calls_of(stack, request_id) == [told["call_id"]]
    assert line_of(stack, "api", request_id, event="call")["call_id"] == told["call_id"]
    said = line_of(stack, "api", request_id, event="request")
    assert (said["route"], said["status"]) == ("/llm/chat", 200)


def test_a_request_through_v1_is_on_record_under_its_id(stack: RunningStack) -> None:
    body = {"model": "Lexi", "messages": [{"role": "user", "content": MARKER}]}
    status, _, request_id = send(stack, "/v1/chat/completions", body)
    assert status == 200
    assert len(calls_of(stack, request_id)) == 1


def test_a_tick_leads_to_its_calls_and_to_the_judgements_that_were_stored(stack: RunningStack) -> None:
    def stored() -> str | None:
        text = (stack.state / "logs" / "forecast.log").read_text()
        found = [json.loads(line) for line in text.splitlines() if '"judgements_stored"' in line]
        ticks = [line["request_id"] for line in found if line["request_id"].startswith("tick-")]
        return ticks[0] if ticks else None

    tick = eventually(stored, what="a tick whose judgements are stored")
    said = line_of(stack, "forecast", tick, event="tick_stored")
    events = lines(stack, "forecast", tick)
    forecasts = {one for line in events if line["event"] == "judgements_stored" for one in line["forecasts"]}
    named = stack.sql(f"""
        select distinct features->'llm'->'policy'->>'call_id' from forecasts
        where id in ({", ".join(f"'{one}'" for one in forecasts)}) and as_of = '{said["as_of"]}'""")
    assert named
    calls = calls_of(stack, tick, least=len(named))
    assert set(named) <= set(calls)
    assert set(named) <= {line["call_id"] for line in events if line["event"] == "call"}


def test_an_order_leads_to_its_verdict_and_to_what_the_broker_got(stack: RunningStack) -> None:
    def sent() -> tuple[dict[str, Any], str] | None:
        _, signals = stack.get("API_PORT", "/signals/latest")
        for found in signals:
            signal_ = found["llm"]["inputs"]["signal"]
            if found["llm"]["policy"]["status"] != "ok" or signal_["side"] == "none":
                continue
            order = {
                "ticker": found["ticker"],
                "side": signal_["side"],
                "qty": 1,
                "ref_price": round(signal_["last_price"], 2),
                "client_order_id": f"one-id-{next(_numbers)}",
            }
            status, told, request_id = send(stack, "/strategist/orders", order)
            if status == 200:
                return told, request_id
        return None

    told, request_id = eventually(sent, what="an order that the broker took")
    verdict = line_of(stack, "api", request_id, event="verdict")
    entry = line_of(stack, "api", request_id, event="entry_sent")
    assert verdict["verdict_id"] == entry["verdict_id"] == told["verdict_id"]
    assert verdict["order_id"] == entry["order_id"] == told["order"]["id"]
    assert verdict["forecast_id"] == told["forecast_id"]
    assert entry["broker_id"] == told["order"]["broker_id"]
    [row] = stack.sql(f"""
        select v.client_order_id, o.broker_id from gate_verdicts v join orders o on o.verdict_id = v.id
        where v.id = '{verdict["verdict_id"]}'""")
    assert row == f"{verdict['client_order_id']}|{entry['broker_id']}"


def test_jobs_run_under_an_id_of_their_own(stack: RunningStack) -> None:
    def ended() -> dict[str, Any] | None:
        text = (stack.state / "logs" / "jobs.log").read_text()
        found = [json.loads(line) for line in text.splitlines() if '"job_ended"' in line]
        return found[0] if found else None

    line = eventually(ended, what="a job that ended")
    assert line["request_id"].startswith("job-")
    assert line["outcome"] == "done"


def plant_headlines(stack: RunningStack) -> None:
    """Posts of every day that the feed is about to reach, on each ticker."""
    [newest] = stack.sql("select max(as_of) from bars")
    tickers = stack.sql("select distinct ticker from bars")
    first = datetime.fromisoformat(newest)
    posts = [
        {
            "source": "test",
            "external_id": f"{ticker}-{day}",
            "ticker": ticker,
            "ts": (first + timedelta(days=day)).isoformat(),
            "handle": MARKER,
            "text": f"{MARKER} soars",
        }
        for ticker in tickers
        for day in range(0, 40, 4)
    ]
    status, told, _ = send(stack, "/ingest/social", posts)
    assert status == 200, told

    def asked() -> bool | None:
        kept = stack.sql(f"select 1 from llm_bodies where messages::text like '%{MARKER} soars%' limit 1")
        return True if kept else None

    eventually(asked, what="a prompt with a planted headline")


def test_no_prompt_headline_body_or_key_is_in_any_log(stack: RunningStack) -> None:
    plant_headlines(stack)
    chat = {"messages": [{"role": "user", "content": MARKER}]}
    assert send(stack, "/v1/chat/completions", {"model": MARKER, **chat})[0] == 404
    assert send(stack, "/v1/chat/completions", {"model": "Lexi", **chat, "n": MARKER})[0] == 400
    assert send(stack, f"/v1/{MARKER}", chat)[0] == 404
    assert send(stack, "/v1/chat/completions", {"model": "Lexi", **chat}, key=WRONG_KEY)[0] == 401
    assert send(stack, "/llm/chat", {"user": MARKER}, key=WRONG_KEY)[0] == 401
    assert send(stack, "/llm/chat", {"user": MARKER, "surprise": MARKER})[0] == 422
    assert send(stack, "/llm/chat", f'{{"user": "{MARKER}'.encode())[0] == 400
    assert send(stack, f"/signals/latest?tickers={MARKER}&key={MARKER}")[0] in {200, 422}
    assert send(stack, f"/{MARKER}")[0] == 404
    status, told, _ = send(stack, "/analytics/recent?ticker=AAPL", port="ANALYTICS_PORT")
    assert status == 200
    assert MARKER in json.dumps(told)
    operator = (stack.state / "operator.key").read_text().strip()
    for path in logs_of(stack):
        text = path.read_text()
        for secret in (MARKER, ENGINE_KEY, WRONG_KEY, operator):
            found = [line[:300] for line in text.splitlines() if secret in line]
            assert found == [], f"{path} has {secret}"
    # The first key is shown to the person at the terminal, as meant; nothing else is.
    assert MARKER not in stack.output()


def logs_of(stack: RunningStack) -> list[Path]:
    """Every log of the run; each service has written to its own."""
    found = sorted((stack.state / "logs").glob("*.log"))
    assert {"api.log", "forecast.log", "jobs.log", "analytics.log", "paper.log"} <= {path.name for path in found}
    return [*found, *stack.state.glob("*.log")]


def test_a_panic_exit_is_tied_to_the_request_that_asked_for_it(stack: RunningStack) -> None:
    status, told, request_id = send(stack, "/strategist/panic-exit", {"reason": "to try it"})
    assert status == 200, told
    assert line_of(stack, "api", request_id, event="panic_exit_started")["exit_id"] == told["exit_id"]
