"""A running stack whose strangers are hostile, and a visitor who signs in to its console."""

import asyncio
import gzip
import json
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from libs.evaluation.report.page import page
from libs.keys import Scope, digest
from tests.acceptance.stack import ROOT, RunningStack, eventually
from tests.browser.conftest import Browser, Visit
from tests.fakes.engine import FakeEngine
from tests.fakes.engine_replies import by_constraint
from tests.unit.evaluation_report_cases import cases, summary

Scheme = Literal["light", "dark"]

SCREENSHOTS = ROOT / ".bench" / "screenshots"
USABLE_MS = 15_000
"""How long a page may take on a busy machine before a test gives up; no test asserts on time."""

NEWEST_FEED = "(select feed from feeds where last_write_at is not null order by last_write_at desc limit 1)"
"""The one that the console shows: a long run of tests sees the end of a replay, and the next."""

HOSTILE = (
    "<img src=x onerror=\"window.ran='rationale';alert(1)\"><script>window.ran=1</script>"
    "<svg onload=alert(2)></svg>\"'> {{constructor.constructor('window.ran=2')()}} [go](javascript:alert(3))"
)
"""What a model says in every free text, and a stranger in a post, a reason, a name."""


class HostileModel:
    """An engine on a thread of its own: valid where it is constrained, save for one ticker, and hostile where not."""

    def __init__(self, *, breaks: str) -> None:
        """`breaks` is a text that stands in a prompt which gets a hostile answer instead of a valid one."""
        self._good = by_constraint(f"A steady drift. {HOSTILE}")
        self._breaks = breaks
        self._loop = asyncio.new_event_loop()
        self._engine = FakeEngine(slots=16, delay_s=0.02, reply=self._reply)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def base_url(self) -> str:
        """Where it listens."""
        return self._engine.base_url

    def _reply(self, body: dict[str, Any]) -> str:
        asked = json.dumps(body["messages"])
        return HOSTILE if self._breaks in asked and "structured_outputs" in body else self._good(body)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    @contextmanager
    def saying(self, words: str) -> Generator[None]:
        """Say something else for a while in every free text."""
        before, self._good = self._good, by_constraint(words)
        try:
            yield
        finally:
            self._good = before

    def start(self) -> None:
        """Listen."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._engine.start(), self._loop).result(10)

    def stop(self) -> None:
        """Go away."""
        asyncio.run_coroutine_threadsafe(self._engine.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


@dataclass
class Desk:
    """The stack, and the browser that looks at it."""

    stack: RunningStack
    browser: Browser
    model: HostileModel

    @property
    def key(self) -> str:
        """The operator's key."""
        return (self.stack.state / "operator.key").read_text().strip()

    def url(self, path: str) -> str:
        """The address of a page."""
        return f"http://127.0.0.1:{self.stack.ports['ANALYTICS_PORT']}{path}"

    def visitor(
        self, *, width: int = 1200, scheme: Scheme = "light", scripts: bool = True, key: str | None = None
    ) -> Visit:
        """Somebody who has just signed in, on the sign-in's own form."""
        context = self.browser.chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=scripts
        )
        page = context.new_page()
        page.set_default_timeout(USABLE_MS)
        visit = Visit(page)
        page.on("console", visit.said)
        page.on("pageerror", visit.failed)
        page.on("dialog", visit.spoke)
        page.on("request", visit.asked)
        page.goto(self.url("/sign-in?next=/panic"))
        page.fill("#key", key or self.key)
        page.click("button.act")
        page.wait_for_url(self.url("/panic"))
        return visit

    def see(self, visit: Visit, path: str) -> Any:
        """Go to a page and wait until it stands: its heading is there, and nothing is still being read."""
        visit.complaints.clear()
        visit.page.goto(self.url(path), wait_until="load")
        visit.page.locator("h1, [role=heading][aria-level='1']").first.wait_for()
        visit.page.wait_for_function("!/(Reading…|not looked at yet)/.test(document.body.innerText)")
        return visit.page

    def another_key(self, name: str, *scopes: Scope) -> str:
        """A new key with these scopes, known to the house within a moment."""
        token = f"lexi_{name}_{uuid4().hex}"
        added = {"name": f"{name}-{uuid4().hex[:8]}", "sha256": digest(token), "scopes": scopes}
        self._change_keys(lambda entries: [*entries, added])
        return token

    def take_away(self, token: str) -> None:
        """Remove a key from the file."""
        self._change_keys(lambda entries: [each for each in entries if each["sha256"] != digest(token)])

    def _change_keys(self, change: Callable[[list[Any]], list[Any]]) -> None:
        file = self.stack.state / "keys.json"
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps(change(json.loads(file.read_text()))))
        fresh.replace(file)
        time.sleep(0.3)

    @contextmanager
    def still(self, *programs: str) -> Generator[None]:
        """Stop some of the stack's processes where they are, so that what is compared does not move meanwhile."""
        frozen = [self.stack.child(each) for each in programs]
        for each in frozen:
            each.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for each in frozen:
                each.send_signal(signal.SIGCONT)

    def rows(self, statement: str) -> list[list[str]]:
        """Rows of a query."""
        return [line.split("|") for line in self.stack.sql(statement)]

    def settled(self, statement: str) -> str:
        """The value of a query once it stays the same for a second."""

        def twice() -> str | None:
            before = self.one(statement)
            time.sleep(1)
            return before if self.one(statement) == before else None

        return eventually(twice, what=f"it stays: {statement}")

    def one(self, statement: str) -> str:
        """The first value of a query, once there is one."""
        return eventually(lambda: next(iter(self.stack.sql(statement)), None), what=statement)


def running_desk(browser: Browser, state: Path) -> Iterator[Desk]:
    """A desk with something to show on every page, from calls and orders to a stranger's post."""
    model = HostileModel(breaks="MSFT")
    model.start()
    stack = RunningStack(
        state, LLM_BASE_URL=model.base_url, FORECAST_INTERVAL_S="3", ENABLE_PANIC_EXIT="1", MAX_ORDERS_PER_MIN="600"
    )
    desk = Desk(stack, browser, model)
    try:
        stack.start()
        stack.wait_until_up()
        furnish(desk)
        yield desk
    finally:
        stack.stop()
        model.stop()


def furnish(desk: Desk) -> None:
    """What the stack does not make by itself within a minute."""
    told(desk, "/llm/admin/prompts/policy/ramp", RAMP)
    desk.stack.sql(exposed())
    told(desk, "/ingest/social", [post(number, ticker) for number, ticker in enumerate(("AAPL", "MSFT", "AMZN"))])
    judged = "features -> 'llm' -> 'policy' ->> 'status'"
    desk.one(f"select 1 from forecasts where {judged} = 'ok' limit 1")
    desk.one(f"select 1 from forecasts where {judged} = 'invalid' limit 1")
    desk.one("select 1 from positions where qty <> 0 limit 1")
    desk.stack.sql(evaluation())
    desk.one("select 1 from reports where name = 'hour'")
    known = "jsonb_path_exists(content, '$.courses[*].points[*].low ? (@ != null)')"
    desk.one(f"select 1 from reports where name = 'course:policy' and {known}")


RAMP = {"operator": "operator", "version": "1.1.0", "percent": 50, "reason": f"a trial {HOSTILE[:120]}"}


def exposed() -> str:
    """The statement that gives the experiment on the policy forty market days of forecasts."""
    return """
        insert into exposures (key, forecast_id, phase, unit, arm, feed, ticker, horizon, as_of, side, judged_at,
          status, timed_out, cached, total_ms, tokens, allow, rules_allow, settled_at, realised_return)
        select 'policy', gen_random_uuid(), 'activation-' || (select max(id) from activations where key = 'policy'),
          t || '|' || d, arm, 'f', 'T' || t, '1d', timestamptz '2012-06-01 21:00Z' + d * interval '1 day', 'buy', now(),
          case when (t * 5 + d * 3) % 37 = 0 then 'invalid' else 'ok' end, false, false, 300 + (t * 31 + d * 17) % 97,
          100 + (t + d) % 7, (t * 3 + d) % 10 < case arm when '1.1.0' then 5 else 4 end, (t * 2 + d) % 7 < 5, now(),
          ((t * 13 + d * 29) % 41 - 20) / 1000.0
        from generate_series(1, 25) as t, generate_series(0, 39) as d,
          lateral (select (array['1.0.0', '1.1.0'])[1 + (t * 7 + d) % 2] as arm) as drawn"""


def post(number: int, ticker: str) -> Mapping[str, str]:
    """A stranger's post, of a day that the replayed market is about to reach."""
    return {
        "source": "strangers",
        "external_id": str(number),
        "ticker": ticker,
        "ts": "2012-08-20T00:00:00Z",
        "handle": HOSTILE[:190],
        "text": f"{ticker}: {HOSTILE}",
    }


def told(desk: Desk, path: str, body: object) -> Any:
    """What the api answers to the operator; anything but success is an error."""
    status, answer = desk.stack.get("API_PORT", path, body=body)
    assert status in {200, 201, 202}, (path, status, answer)
    return answer


def evaluation() -> str:
    """The statement that registers an evaluation which has ended, by somebody with a hostile name."""
    made = summary()
    found = json.dumps(made | {"versions": [each | {"passed": True} for each in made["versions"]]})
    plan = json.dumps({"cases": 200, "stamp": {"model": {"name": "Lexi"}}})
    report = gzip.compress(page(made, cases(made)).encode()).hex()
    return f"""
        insert into evaluations (id, name, asked_by, plan, total, state, passed, summary, report, finished_at) values
        (gen_random_uuid(), $x$nightly {HOSTILE}$x$, $x${HOSTILE}$x$, '{plan}', 200,
         'done', true, $x${found}$x$, decode('{report}', 'hex'), now())"""


def complaints(visit: Visit) -> list[str]:
    """What the browser complained about. Hints for developers are none, nor is that this machine's network changed, as
    it does whenever somebody starts a container."""
    complained = [each for each in visit.complaints if not each.startswith(("debug:", "verbose:"))]
    return [each for each in complained if "net::ERR_NETWORK_CHANGED" not in each]
